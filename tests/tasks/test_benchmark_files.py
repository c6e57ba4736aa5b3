"""Benchmarks from files: of one data set or several, in JSON Lines, Parquet and CSV."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cgrpo_core.errors import UserError
from flows.spec import Benchmark
from tasks.benchmarks import benchmark_identity, load_benchmark_problems

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def declaration(path: Path, **values: Any) -> dict[str, Any]:
    benchmark = Benchmark(title="b", licence="x", **values)
    kind = path.suffix.removeprefix(".")
    return {"kind": "benchmark", "name": "b", **benchmark.model_dump(), "source": {"kind": kind, "path": str(path)}}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"problem": f"{k}?", "answer": k, "data_source": "math" if k % 2 else "amc"} for k in range(6)]


def test_a_file_of_several_data_sets_is_read_by_its_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    loaded = load_benchmark_problems(declaration(path, data_source="math"), tmp_path)
    assert [problem.ground_truth for problem in loaded.problems] == ["1", "3", "5"]
    assert loaded.counts == {"of_other_data_sources": 3}
    with pytest.raises(UserError, match="no row whose data_source is 'aime'") as caught:
        load_benchmark_problems(declaration(path, data_source="aime"), tmp_path)
    assert "amc, math" in caught.value.hint


def test_rejected_and_repeated_rows_have_their_line_and_reason(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], "text", {"problem": "?"}, ROWS[0]])
    loaded = load_benchmark_problems(declaration(path), tmp_path)
    assert [row.line for row in loaded.rejected] == [2, 3, 4]
    assert "already at line 1" in loaded.rejected[2].reason
    with pytest.raises(UserError, match="no usable problem for the benchmark b"):
        load_benchmark_problems(declaration(write_jsonl(tmp_path / "bad.jsonl", [{}, []])), tmp_path)


def test_a_csv_file_is_read_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Question", "Correct Answer", "Incorrect Answer 1"])
        rows.writerow(['Which "one",\nof two?', "a, b", "c"])
        rows.writerow(["Which?", "a"])
        rows.writerow(["Which?", "a", "b", "c"])
    columns = {"question": "Question", "answer": "Correct Answer"}
    wanted = declaration(path, format="answers_apart", columns=columns, wrong_columns=["Incorrect Answer 1"])
    loaded = load_benchmark_problems(wanted, tmp_path)
    (problem,) = loaded.problems
    assert problem.question.startswith('Which "one",\nof two?')
    assert [row.line for row in loaded.rejected] == [2, 3]
    path.write_bytes(b"Question\n\xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read as CSV"):
        load_benchmark_problems(wanted, tmp_path)


def test_the_identity_is_of_the_content_and_of_how_it_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    table = pa.Table.from_pylist([{"problem": row["problem"], "answer": row["answer"]} for row in ROWS])
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "copy.jsonl").write_bytes(path.read_bytes())

    def known(path: Path, **values: Any) -> str:
        return str(benchmark_identity(declaration(path, **values), tmp_path)["digest"])

    first = known(path)
    assert known(tmp_path / "copy.jsonl") == first
    assert known(path, note="other", template="boxed", shards=3, samples=4) == first
    others = [
        known(path, limit=3),
        known(path, data_source="math"),
        known(path, format="gsm8k"),
        known(path, columns={"answer": "a"}),
    ]
    assert len({first, *others, known(tmp_path / "rows.parquet")}) == 6


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not beside the repository")
@pytest.mark.parametrize(
    ("file", "values", "size"),
    [
        ("math500.jsonl", {"data_source": "math"}, 500),
        ("gsm8k_test.jsonl", {"format": "gsm8k"}, 1319),
        ("official_test.parquet", {"data_source": "math"}, 500),
        ("official_test.parquet", {"data_source": "aime", "columns": {"answer": "solution"}}, 30),
        ("official_test.parquet", {"data_source": "amc"}, 83),
        ("official_test.parquet", {"data_source": "minerva"}, 272),
        ("official_test.parquet", {"data_source": "olympiad_bench"}, 675),
    ],
)
def test_the_files_that_people_have_are_read(file: str, values: dict[str, Any], size: int) -> None:
    loaded = load_benchmark_problems(declaration(SHARED / file, **values), SHARED)
    assert len(loaded.problems) == size
    assert not [row for row in loaded.rejected if "already at line" not in row.reason]
