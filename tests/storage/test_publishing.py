"""An artifact is there whole or not at all, is never changed, and is checked when it is read."""

import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
import storage_rows as rows_of
from storage_rows import a_manifest, key_of

import storage.artifacts
from cgrpo_core.records import Response, Verdict
from storage.artifacts import Manifest, Store
from storage.disk import DiskFault
from storage.durable import drop_leftovers
from storage.errors import ArtifactCorrupt, ArtifactMissing, ManifestInvalid, RecordInvalid, SchemaMismatch

KEY = key_of("rollout")
DIES_BEFORE_THE_RENAME = """
import sys, time
from pathlib import Path
import storage.artifacts
from storage_rows import a_manifest, a_response, key_of
from cgrpo_core.records import Response

def never(*_):
    print("about to rename", flush=True)
    time.sleep(600)

storage.artifacts.{patched} = never
store = storage.artifacts.Store(Path(sys.argv[1]))
store.publish(a_manifest(key_of("rollout")), {{"responses": (Response, [a_response()])}})
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def publish(store: Store, *rows: Response, **changes: object) -> Manifest:
    return store.publish(a_manifest(KEY, **changes), {"responses": (Response, list(rows))})


def parquet_files(store: Store) -> list[str]:
    return [name for (name,) in duckdb.sql(f"SELECT file FROM glob('{store.home}/artifacts/**/*.parquet')").fetchall()]


def test_what_was_published_is_read_back_with_its_manifest(store: Store) -> None:
    rows = [rows_of.a_response(response_id=f"r{i}", text="x" * i) for i in range(3)]
    directories = {"weights": "weights/abc"}
    counts, metrics = {"finish_reason_length": 2}, {"tokens_per_second": 431.5}
    written = publish(
        store, *rows, counts=counts, metrics=metrics, directories=directories, params={"rollout": {"n": 7}}
    )
    assert store.read(KEY, "responses", Response) == rows
    assert store.find(KEY) == written
    assert (written.counts, written.metrics, written.directories) == (counts, metrics, directories)
    assert written.outputs["responses"]["rows"] == 3
    assert Manifest.from_json(json.loads(json.dumps(written.to_json()))) == written
    assert store.path(KEY) == store.home / "artifacts" / KEY[:2] / KEY


def test_each_stored_row_names_its_artifact(store: Store) -> None:
    publish(store, rows_of.a_response())
    table = pq.read_table(store.path(KEY) / "responses.parquet")
    assert table.column_names[0] == "artifact"
    assert table.column("artifact").to_pylist() == [KEY]
    metadata = pq.ParquetFile(store.path(KEY) / "responses.parquet").metadata.row_group(0).column(0)
    assert metadata.compression == "ZSTD"


def test_an_empty_result_is_a_table_without_rows(store: Store) -> None:
    manifest = publish(store)
    assert manifest.outputs["responses"]["rows"] == 0
    assert store.read(KEY, "responses", Response) == []


def test_a_megabyte_of_hostile_text_comes_back(store: Store) -> None:
    row = rows_of.a_response(text="\0\ud83d<b>'; DROP TABLE x; --\n" * 40_000)
    publish(store, row)
    assert store.read(KEY, "responses", Response) == [row]


@pytest.mark.parametrize("patched", ["move_into_place", "_write_manifest"])
def test_a_publisher_killed_half_way_leaves_nothing_that_a_reader_sees(store: Store, patched: str) -> None:
    script = DIES_BEFORE_THE_RENAME.format(patched=patched)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(store.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "about to rename\n"
        process.send_signal(signal.SIGKILL)
    assert list((store.home / "tmp").iterdir()), "the half-written directory is left behind"
    assert store.find(KEY) is None
    assert parquet_files(store) == []
    with pytest.raises(ArtifactMissing, match=KEY):
        store.read(KEY, "responses", Response)
    publish(store, rows_of.a_response(text="second try"))
    assert [row.text for row in store.read(KEY, "responses", Response)] == ["second try"]
    assert drop_leftovers(store.home) == 1
    assert store.find(KEY) is not None


def test_a_failing_write_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.artifacts, "write_bytes", full_disk)
    with pytest.raises(DiskFault, match="the disk is full"):
        publish(store, rows_of.a_response())
    assert store.find(KEY) is None
    assert list((store.home / "tmp").iterdir()) == []


def test_the_older_of_two_artifacts_is_kept(store: Store) -> None:
    first = publish(store, rows_of.a_response(text="first"))
    second = publish(store, rows_of.a_response(text="second"), started_at=900.0)
    assert second == first
    assert [row.text for row in store.read(KEY, "responses", Response)] == ["first"]


def test_a_publisher_that_is_overtaken_returns_the_manifest_of_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest = storage.artifacts._write_manifest

    def overtaken(directory: Path, manifest: Manifest) -> None:
        monkeypatch.setattr(storage.artifacts, "_write_manifest", write_manifest)
        publish(store, rows_of.a_response(text="faster"))
        write_manifest(directory, manifest)

    monkeypatch.setattr(storage.artifacts, "_write_manifest", overtaken)
    manifest = publish(store, rows_of.a_response(text="slower"), started_at=900.0)
    assert manifest == store.find(KEY)
    assert manifest.started_at == 100.0
    assert [row.text for row in store.read(KEY, "responses", Response)] == ["faster"]
    assert list((store.home / "tmp").iterdir()) == []


def test_of_many_publishers_at_once_one_wins_and_all_agree_on_it(store: Store) -> None:
    gate = threading.Barrier(8)
    manifests: list[Manifest] = []

    def race(number: int) -> None:
        gate.wait()
        manifests.append(publish(store, rows_of.a_response(text=str(number)), started_at=float(number)))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifests == [store.find(KEY)] * 8
    (row,) = store.read(KEY, "responses", Response)
    assert float(row.text) == manifests[0].started_at


def test_files_without_a_manifest_are_no_artifact_and_do_not_block_one(store: Store) -> None:
    store.path(KEY).mkdir(parents=True)
    (store.path(KEY) / "responses.parquet").write_bytes(b"half")
    assert store.find(KEY) is None
    publish(store, rows_of.a_response())
    assert len(store.read(KEY, "responses", Response)) == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected", "actual"),
    [
        (flip_a_bit, "sha256 ", "sha256 "),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), " bytes", "100 bytes"),
        (Path.unlink, "a file of", "no file"),
    ],
    ids=["a flipped bit", "cut short", "gone"],
)
def test_a_damaged_file_is_found_when_read_and_named(
    store: Store, damage: Callable[[Path], object], expected: str, actual: str
) -> None:
    publish(store, rows_of.a_response())
    path = store.path(KEY) / "responses.parquet"
    damage(path)
    with pytest.raises(ArtifactCorrupt) as caught:
        store.read(KEY, "responses", Response)
    error = caught.value
    assert error.path == path
    assert str(path) in str(error)
    assert expected in error.expected
    assert actual in error.actual
    assert error.expected != error.actual
    assert "resume" in error.hint
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - errors of tasks travel between processes
    assert (str(again), again.hint, again.path, again.expected) == (str(error), error.hint, path, error.expected)


@pytest.mark.parametrize("content", ["", "{", '{"format": 99}', "[]", '{"format": 1, "key": "x"}'])
def test_a_damaged_manifest_is_an_error_and_not_an_absent_artifact(store: Store, content: str) -> None:
    publish(store, rows_of.a_response())
    (store.path(KEY) / "manifest.json").write_text(content)
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json"):
        store.find(KEY)


def test_a_manifest_in_the_directory_of_another_key_is_refused(store: Store) -> None:
    publish(store, rows_of.a_response())
    other = store.path(key_of("other"))
    other.parent.mkdir(parents=True, exist_ok=True)
    store.path(KEY).rename(other)
    with pytest.raises(ArtifactCorrupt, match="that of"):
        store.find(key_of("other"))


def test_an_output_read_as_another_record_is_refused(store: Store) -> None:
    publish(store, rows_of.a_response())
    with pytest.raises(SchemaMismatch, match="holds Response, not Verdict"):
        store.read(KEY, "responses", Verdict)


def test_a_file_of_an_older_form_of_the_record_is_refused(store: Store) -> None:
    older = dataclasses.make_dataclass("Response", [("response_id", str), ("text", str)], frozen=True)
    store.publish(a_manifest(KEY), {"responses": (older, [older(response_id="r1", text="t")])})
    with pytest.raises(SchemaMismatch, match="expected response_id string, group_id string") as caught:
        store.read(KEY, "responses", Response)
    assert "another version" in caught.value.hint


def test_an_unknown_output_is_refused_with_those_that_are_there(store: Store) -> None:
    publish(store, rows_of.a_response())
    with pytest.raises(ArtifactMissing, match=r"no output 'verdicts', only \['responses'\]"):
        store.read(KEY, "verdicts", Verdict)


@pytest.mark.parametrize(
    "row", [rows_of.a_response(sampling_logprobs=(math.nan, 0.0)), rows_of.a_response(response_id="")]
)
def test_rows_that_break_the_rules_are_never_published(store: Store, row: Response) -> None:
    with pytest.raises(RecordInvalid):
        publish(store, row)
    assert store.find(KEY) is None
    assert list((store.home / "tmp").iterdir()) == []


@pytest.mark.parametrize("changes", [{"metrics": {"loss": math.nan}}, {"params": {"x": object()}}])
def test_a_manifest_that_json_cannot_keep_is_refused(store: Store, changes: dict[str, object]) -> None:
    with pytest.raises(ManifestInvalid, match="is no JSON"):
        publish(store, rows_of.a_response(), **changes)
    assert store.find(KEY) is None


@pytest.mark.parametrize("key", ["", "../../etc", "AB" * 32, KEY + "0", "k1"])
def test_only_a_stage_key_names_an_artifact(store: Store, key: str) -> None:
    with pytest.raises(ManifestInvalid, match="no stage key"):
        store.find(key)


def test_an_output_name_cannot_leave_the_directory(store: Store) -> None:
    with pytest.raises(ManifestInvalid, match="no output name"):
        store.publish(a_manifest(KEY), {"../evil": (Response, [])})
