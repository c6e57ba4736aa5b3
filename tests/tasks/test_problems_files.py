"""Data sets of users: files with bad lines, files that are not there, hub files, mixtures."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cgrpo_core.errors import UserError
from tasks import sources
from tasks.problems import DatasetEmpty, identity, load
from tasks.sources import DatasetMissing, DatasetUnreadable, RevisionNotPinned

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def jsonl(directory: Path, *lines: Any, name: str = "some.jsonl") -> dict[str, Any]:
    """Write lines (bytes as they are, the rest as JSON) and return their declaration."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (directory / name).write_bytes(b"\n".join(raw) + b"\n")
    return {"kind": "jsonl", "path": name}


def test_bad_lines_are_rejected_with_their_number_and_the_good_ones_kept(tmp_path: Path) -> None:
    declaration = jsonl(
        tmp_path,
        {"id": "a", "problem": "What is 1 + 1?", "answer": 2},
        b'{"problem": "half a line',
        b"",
        {"problem": "no answer here"},
        b'{"problem": "\xff\xfe", "answer": "1"}',
        [1, 2],
        {"id": "a", "problem": "the id again", "answer": "1"},
        b'{"problem": "What is 1 / 2?", "answer": 0.50}',
        b"[" * 100_000,
    )
    loaded = load(declaration, tmp_path)
    assert [(row.question, row.ground_truth) for row in loaded.problems] == [
        ("What is 1 + 1?", "2"),
        ("What is 1 / 2?", "0.50"),
    ]
    assert {problem.source for problem in loaded.problems} == {"some"}
    assert [row.line for row in loaded.rejected] == [2, 4, 5, 6, 7, 9]
    assert [row.reason.split(":")[0] for row in loaded.rejected] == [
        "the line is not JSON",
        "no answer",
        "the line is not UTF-8",
        "the row is a list, not an object with columns",
        "the problem a is already at line 1",
        "the line is not JSON",
    ]


def test_a_file_that_starts_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    declaration = jsonl(tmp_path, b'\xef\xbb\xbf{"question": "q", "answer": "1"}')
    assert not load(declaration, tmp_path).rejected


def test_parquet_in_the_authors_schema_is_read_and_repeats_are_counted(tmp_path: Path) -> None:
    row = {
        "data_source": "aime",
        "prompt": [{"role": "user", "content": "How many?\nLet's think step by step and answer within \\boxed{}."}],
        "reward_model": {"ground_truth": "204", "style": "rule"},
        "extra_info": {"index": 0},
    }
    rows = [row, {**row, "extra_info": {"index": 1}}, {**row, "reward_model": {"ground_truth": None, "style": "rule"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    loaded = load({"kind": "parquet", "path": "test.parquet"}, tmp_path)
    assert [(found.question, found.ground_truth) for found in loaded.problems] == [("How many?", "204")]
    assert [row.line for row in loaded.rejected] == [2, 3]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for call in (identity, load):
        with pytest.raises(DatasetMissing, match=r"nowhere\.jsonl") as raised:
            call({"kind": "jsonl", "path": "nowhere.jsonl"}, tmp_path)
        assert str(tmp_path) in raised.value.hint


def test_a_data_set_without_a_usable_row_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetEmpty, match=r"some\.jsonl has no usable problem; .* 1 rejected rows: no answer"):
        load(jsonl(tmp_path, {"question": "q"}), tmp_path)
    with pytest.raises(DatasetEmpty, match=r"some\.jsonl"):
        load(jsonl(tmp_path, b""), tmp_path)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    declaration = jsonl(tmp_path, {"question": "q", "answer": "1"})
    with pytest.raises(DatasetUnreadable, match=r"some\.jsonl"):
        load({**declaration, "kind": "parquet"}, tmp_path)


def test_identity_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "1"}
    (tmp_path / "b").mkdir()
    one = identity(jsonl(tmp_path, row), tmp_path)
    moved = identity(jsonl(tmp_path / "b", row, name="other.jsonl"), tmp_path / "b")
    changed = identity(jsonl(tmp_path, {**row, "answer": "2"}), tmp_path)
    assert one == moved
    assert one["digest"] != changed["digest"]


def test_a_mixture_is_its_parts_in_order_without_repeats(tmp_path: Path) -> None:
    first = jsonl(tmp_path, {"id": "a", "question": "q", "answer": "1"}, {"id": "b"}, name="first.jsonl")
    second = jsonl(
        tmp_path,
        {"id": "a", "question": "q", "answer": "1"},
        {"id": "c", "question": "r", "answer": "1"},
        name="second.jsonl",
    )
    declaration = {"kind": "mixture", "parts": [first, second]}
    loaded = load(declaration, tmp_path)
    assert [row.problem_id for row in loaded.problems] == ["a", "c"]
    assert [row.reason for row in loaded.rejected] == [
        "part 1: no question",
        "part 2: the problem a is already in part 1",
    ]
    swapped = {"kind": "mixture", "parts": [second, first]}
    assert identity(declaration, tmp_path)["digest"] != identity(swapped, tmp_path)["digest"]


def hub(file: str = "data/train.jsonl", revision: str = COMMIT) -> dict[str, Any]:
    return {"kind": "hf_dataset", "repo": "some/data", "revision": revision, "file": file}


def test_a_hub_file_is_read_from_its_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path, {"question": "q", "answer": "1"})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **options: str(tmp_path / "some.jsonl"))
    assert load(hub(), tmp_path).problems[0].question == "q"


def test_without_a_network_a_hub_file_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(DatasetMissing, match=r"some/data .*no connection") as raised:
        sources.hub_file(hub())
    assert "jsonl" in raised.value.hint


def test_a_hub_declaration_must_be_pinned_and_of_a_known_kind(tmp_path: Path) -> None:
    with pytest.raises(RevisionNotPinned, match="main"):
        identity(hub(revision="main"), tmp_path)
    with pytest.raises(DatasetUnreadable, match=r"train\.tsv"):
        identity(hub(file="train.tsv"), tmp_path)
    assert identity(hub(), tmp_path)["revision"] == COMMIT


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    for call in (identity, load):
        with pytest.raises(UserError, match="tsv") as raised:
            call({"kind": "tsv", "path": "x"}, tmp_path)
        assert "reasoning_gym" in raised.value.hint
