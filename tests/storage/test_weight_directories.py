"""Directories of weights and checkpoints are published whole, and old weights are dropped without harm."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from storage_rows import key_of

from storage.durable import drop_leftovers
from storage.errors import DirectoryInvalid
from storage.policies import complete, damaged_files, drop, drop_superseded, publish_directory

KEY = key_of("update 1")
DIES_WHILE_WRITING = """
import sys, time
from pathlib import Path
from storage.policies import publish_directory
from storage_rows import key_of

def write(directory):
    (directory / "model.safetensors").write_bytes(b"half")
    print("half-way", flush=True)
    time.sleep(600)

publish_directory(Path(sys.argv[1]), "checkpoints", key_of("update 1"), write)
"""


def write_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "optimizer" / "rank0").mkdir(parents=True)
    (directory / "optimizer" / "rank0" / "state.pt").write_bytes(b"moments")


def publish(home: Path, name: str) -> str:
    return publish_directory(home, "weights", key_of(name), write_weights)


def test_a_published_directory_is_complete_and_lies_below_home(tmp_path: Path) -> None:
    relative = publish_directory(tmp_path, "checkpoints", KEY, write_weights)
    assert relative == f"checkpoints/{KEY}"
    assert (tmp_path / relative / "optimizer/rank0/state.pt").read_bytes() == b"moments"
    assert complete(tmp_path, relative)
    assert damaged_files(tmp_path, relative) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_existing_directory_is_kept_and_not_written_again(tmp_path: Path) -> None:
    relative = publish(tmp_path, "update 1")
    again = publish_directory(tmp_path, "weights", KEY, lambda _: pytest.fail("written twice"))
    assert again == relative


def test_a_writer_killed_half_way_is_never_chosen(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", DIES_WHILE_WRITING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
    relative = f"checkpoints/{KEY}"
    assert not complete(tmp_path, relative)
    assert not (tmp_path / "checkpoints").exists()
    publish_directory(tmp_path, "checkpoints", KEY, write_weights)
    assert complete(tmp_path, relative)
    assert drop_leftovers(tmp_path) == 1


def test_a_failing_writer_leaves_nothing_and_its_error_rises(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("the trainer died")

    with pytest.raises(RuntimeError, match="the trainer died"):
        publish_directory(tmp_path, "weights", KEY, fails)
    assert not complete(tmp_path, f"weights/{KEY}")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("lost", ["DIGESTS.json", "model.safetensors", "optimizer/rank0/state.pt"])
def test_a_directory_that_lost_a_file_is_not_complete_and_is_replaced(tmp_path: Path, lost: str) -> None:
    relative = publish(tmp_path, "update 1")
    (tmp_path / relative / lost).unlink()
    assert not complete(tmp_path, relative)
    publish(tmp_path, "update 1")
    assert complete(tmp_path, relative)
    assert (tmp_path / relative / lost).is_file()


def test_a_file_cut_short_is_seen_at_once_and_a_flipped_bit_by_its_digest(tmp_path: Path) -> None:
    relative = publish(tmp_path, "update 1")
    path = tmp_path / relative / "model.safetensors"
    path.write_bytes(b"weightz")
    assert complete(tmp_path, relative), "sizes alone do not show it"
    assert damaged_files(tmp_path, relative) == ["model.safetensors"]
    path.write_bytes(b"weig")
    assert not complete(tmp_path, relative)
    (path.parent / "DIGESTS.json").write_text('{"files": ')
    assert not complete(tmp_path, relative)
    assert damaged_files(tmp_path, relative) == ["DIGESTS.json"]


def test_superseded_weights_are_dropped_but_for_the_newest_and_the_protected(tmp_path: Path) -> None:
    published = [publish(tmp_path, f"update {number}") for number in range(5)]
    for age, relative in enumerate(published):
        os.utime(tmp_path / relative / "DIGESTS.json", (age, age))
    checkpoint = publish_directory(tmp_path, "checkpoints", KEY, write_weights)
    dropped = drop_superseded(tmp_path, {published[1]}, newest=2)
    assert sorted(dropped) == sorted([published[0], published[2]])
    assert [complete(tmp_path, relative) for relative in published] == [False, True, False, True, True]
    assert complete(tmp_path, checkpoint)
    assert drop_superseded(tmp_path, {published[1]}, newest=2) == []
    assert sorted(drop_superseded(tmp_path, set(), newest=0)) == sorted([published[1], *published[3:]])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_dropped_weights_can_be_published_again(tmp_path: Path) -> None:
    relative = publish(tmp_path, "update 1")
    assert drop(tmp_path, relative)
    assert not drop(tmp_path, relative)
    assert not complete(tmp_path, relative)
    assert publish(tmp_path, "update 1") == relative
    assert complete(tmp_path, relative)


@pytest.mark.parametrize(
    "relative", ["", "weights", "weights/..", "../weights/x", "artifacts/" + KEY, "/etc", "runs/x"]
)
def test_nothing_else_than_weights_and_checkpoints_can_be_dropped(tmp_path: Path, relative: str) -> None:
    with pytest.raises(DirectoryInvalid, match="no directory of weights or a checkpoint"):
        drop(tmp_path, relative)


def test_links_and_empty_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DirectoryInvalid, match="is a link"):
        publish_directory(tmp_path, "weights", KEY, lambda directory: (directory / "model").symlink_to(tmp_path))
    with pytest.raises(DirectoryInvalid, match="nothing was written"):
        publish_directory(tmp_path, "weights", KEY, lambda _: None)
    with pytest.raises(DirectoryInvalid, match="cannot keep"):
        drop_superseded(tmp_path, set(), newest=-1)
