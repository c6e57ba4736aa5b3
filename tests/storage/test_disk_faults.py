"""A disk that is full, read-only or failing: one message with a way out, and nothing half-written is ever visible."""

import contextlib
import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import storage_rows as rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rows import a_manifest, a_plan, key_of

from cgrpo_core.records import Response
from storage.artifacts import Store
from storage.disk import DiskFault, disk_fault
from storage.policies import complete, publish_directory
from storage.runs import create_run, list_runs, open_run

KEY = key_of("rollout")
ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from cgrpo_core.records import Response
from storage.artifacts import Store
from storage.disk import DiskFault
from storage_rows import a_manifest, a_response, key_of
import random

home, published = Path(sys.argv[1]), 0
draw = random.Random(1)
try:
    for number in range(100):
        text = draw.randbytes(100_000).hex()
        Store(home).publish(a_manifest(key_of(str(number))), {"responses": (Response, [a_response(text=text)])})
        published += 1
except DiskFault as fault:
    print(fault.message)
    print(fault.hint)
kept = [Store(home).read(key_of(str(number)), "responses", Response) for number in range(published)]
assert Store(home).find(key_of(str(published))) is None
assert list((home / "tmp").iterdir()) == [], "nothing is left of what did not fit"
print(len(kept), "kept")
"""


def on_a_mount(options: str, directory: Path, script: str, prepare: str = "true") -> str:
    """Run Python on a small file system of its own; skip where the kernel allows no mounts."""
    mounted = f"mount -t tmpfs -o {options} tmpfs {directory}"
    tests = Path(__file__).parent
    command = f'{mounted} || exit 77; {prepare} || exit 77; {sys.executable} -c "$1" {directory}'
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parents[1]}"}
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", command, "sh", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_on_a_full_disk_what_is_published_stays_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    said = on_a_mount("size=1m", tmp_path, ON_A_SMALL_DISK).splitlines()
    assert said[0].startswith("the disk is full")
    assert "cgrpo gc" in said[1]
    assert int(said[2].split()[0]) >= 3


def test_on_a_read_only_disk_nothing_is_begun(tmp_path: Path) -> None:
    said = on_a_mount("size=1m", tmp_path, ON_A_SMALL_DISK, f"mkdir {tmp_path}/tmp && mount -o remount,ro {tmp_path}")
    assert "read-only" in said
    assert "CGRPO_HOME" in said
    assert said.endswith("0 kept\n")


def test_a_checkpoint_that_does_not_fit_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFault, match="the disk is full"):
        publish_directory(tmp_path, "checkpoints", KEY, write)
    assert not complete(tmp_path, f"checkpoints/{KEY}")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_other_errors_are_not_of_the_disk(tmp_path: Path) -> None:
    assert disk_fault(OSError(errno.ENOENT, "no"), tmp_path) is None
    assert disk_fault(ValueError("x"), tmp_path) is None
    fault = disk_fault(OSError(errno.EIO, "x", "/disk/file"), tmp_path)
    assert "/disk/file" in str(fault)
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)  # noqa: S301 - it rises out of a remote task


class Killed(BaseException):
    """The process ends here: nothing that follows runs, not even what cleans up."""


CALLS = ("open", "fsync", "rename", "mkdir")


@settings(max_examples=60, deadline=None)
@given(
    fails_at=st.integers(0, 14), number=st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS, 0]), again=st.booleans()
)
def test_a_publish_that_is_cut_off_at_any_system_call_is_there_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, fails_at: int, number: int, again: bool
) -> None:
    """number 0 is a kill, after which nothing cleans up; otherwise the system call fails with that error."""
    home, left = tmp_path_factory.mktemp("cut"), [fails_at]
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            real = getattr(os, name)

            def call(*arguments: object, real=real, **options: object) -> object:
                if not left[0]:
                    raise OSError(number, os.strerror(number)) if number else Killed
                left[0] -= 1
                return real(*arguments, **options)

            patch.setattr(os, name, call)
        if not number:
            patch.setattr("storage.artifacts.shutil.rmtree", lambda *_, **__: None)
        with contextlib.suppress(DiskFault, Killed):
            publish(home, "first")
    assert rows(home) in (None, "first")
    if again:
        publish(home, "second")
        assert rows(home) in ("first", "second")
        assert len(list((home / "artifacts").rglob("manifest.json"))) == 1


def publish(home: Path, text: str) -> None:
    Store(home).publish(a_manifest(KEY), {"responses": (Response, [rows_of.a_response(text=text)])})


def rows(home: Path) -> str | None:
    if Store(home).find(KEY) is None:
        return None
    (row,) = Store(home).read(KEY, "responses", Response)
    return row.text


def test_the_newest_run_is_the_one_made_last_also_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(tmp_path, name="first", plan=a_plan(), options={})
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    create_run(tmp_path, name="second", plan=a_plan(), options={})
    create_run(tmp_path, name="third", plan=a_plan(), options={})
    assert open_run(tmp_path).name == "third"
    assert [run.name for run in list_runs(tmp_path)] == ["first", "second", "third"]
