"""`cgrpo verifier` and `cgrpo decontaminate`: what they print, and how they refuse a bad file."""

import json
from pathlib import Path

import pytest

CASES = [
    {"gold": "4", "pred": r"\boxed{4}", "expected": True, "core": True, "id": "right"},
    {"gold": "4", "pred": r"\boxed{5}", "expected": True, "core": True, "id": "other"},
    {"gold": "11", "pred": "7 + 4", "expected": False, "core": False, "question": "What is 7 + 4?"},
]


def cases_file(folder: Path) -> str:
    path = folder / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CASES))
    return str(path)


def test_each_disagreement_is_printed_and_last_the_agreement(cgrpo, tmp_path) -> None:
    code, out, _ = cgrpo("verifier", "--cases", cases_file(tmp_path))
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("other: wrong (ok), expected correct; gold '4'")
    assert len(lines) == 2
    assert lines[-1].startswith("agreement 0.667 (2 of 3), ")
    assert lines[-1].endswith(" cases/s")


def test_only_the_core_rows_are_judged_by_two_workers(cgrpo, tmp_path) -> None:
    code, out, _ = cgrpo("verifier", "--cases", cases_file(tmp_path), "--core", "--workers", "2", "--json")
    found = json.loads(out)
    assert (code, found["agreed"], found["cases"], found["statuses"]) == (0, 1, 2, {"ok": 2})
    assert [row["id"] for row in found["disagreements"]] == ["other"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no file of cases"), ("{", "line 1: not JSON"), ('{"gold": "4", "pred": "4"}', "line 1: expected is null")],
)
def test_a_file_that_holds_no_cases_is_refused_with_the_line(cgrpo, tmp_path, content, said) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    code, out, err = cgrpo("verifier", "--cases", str(path))
    assert (code, out) == (2, "")
    assert said in err
    assert "hint:" in err


def problems_file(folder: Path, name: str, questions: dict[str, str]) -> str:
    path = folder / name
    rows = [{"id": key, "problem": question, "answer": "1"} for key, question in questions.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_in_a_benchmark_too_is_printed_with_its_ids(cgrpo, tmp_path) -> None:
    train = problems_file(tmp_path, "train.jsonl", {"t1": "What is 3 + 5?", "t2": "What is 4 + 5?"})
    bench = problems_file(tmp_path, "bench.jsonl", {"b1": "what is 3+5"})
    other = problems_file(tmp_path, "other.jsonl", {"o1": "Who?"})
    code, out, _ = cgrpo("decontaminate", train, "--against", bench, other)
    assert code == 0
    assert out.splitlines() == [
        f"t1  exact  b1  {bench}",
        f"{bench}: 1 exact, 0 by 13-gram, of 1 problems",
        f"{other}: 0 exact, 0 by 13-gram, of 1 problems",
        "1 of 2 problems are in a benchmark too",
    ]
    code, out, _ = cgrpo("decontaminate", train, "--against", bench, "--json")
    assert (code, json.loads(out)["shared"]) == (0, ["t1"])


def test_no_benchmark_and_a_file_of_another_kind_are_refused(cgrpo, tmp_path) -> None:
    train = problems_file(tmp_path, "train.jsonl", {"t1": "What is 3 + 5?"})
    assert cgrpo("decontaminate", train)[0] == 2
    assert cgrpo("decontaminate", train, "--against", "bench.csv")[0] == 2
