"""An audit of a whole run: what is intact passes, and whatever was changed in it is found and named."""

import random
import shutil
from pathlib import Path

import pytest
from fake_run import fake_engines

from flows.audit import audit
from flows.certificate import page
from storage.integrity import check_run_files, check_store

KINDS = ("artifacts", "runs", "weights", "checkpoints")


@pytest.fixture
def engines(monkeypatch):
    fake_engines(monkeypatch)


@pytest.fixture
def home(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "home")
    return tmp_path / "home"


def files_of(home: Path) -> list[Path]:
    found = [path for kind in KINDS for path in sorted((home / kind).rglob("*")) if path.is_file()]
    return [path for path in found if path.name != "lock"]


def silent(_: str) -> None:
    return None


def test_an_intact_run_is_clean_and_everything_was_checked(ran, engines):
    home, plan = ran
    certificate = audit(home, "one", silent)
    assert (certificate.findings, certificate.notes) == ([], [])
    assert certificate.clean
    assert certificate.counts["artifacts"] == certificate.counts["stages"] == len(plan.stages)
    assert certificate.counts["recomputed_stages"] == sum(stage.engine is None for stage in plan.stages)
    assert certificate.counts["weights"] == 2
    assert certificate.identity["inputs"]["problems"]["digest"]
    assert certificate.merkle_root == audit(home, "one", silent).merkle_root
    text = page(certificate)
    assert "run one: clean (completed)" in text
    assert certificate.merkle_root in text
    assert len(text.splitlines()) < 60


def byte_flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(bytes(content))


def cut_short(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def removed(path: Path, _: random.Random) -> None:
    path.unlink()


def lengthened(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(1 + draw.randrange(9)))


def findings(home: Path, keys: list[str]) -> set[str]:
    found = [*check_run_files(home, "one"), *check_store(home, "one", keys)]
    return {finding.subject for finding in found if finding.severity == "damage"}


@pytest.mark.parametrize(("change", "times"), [(byte_flipped, 200), (cut_short, 60), (lengthened, 60), (removed, 0)])
def test_whatever_is_done_to_any_file_is_found_and_the_file_is_named(ran, home, change, times):
    """times: of random files; 0: once to every file. Nothing else than the file that was changed is named."""
    keys, draw = [stage.key for stage in ran[1].stages], random.Random(17)
    files = files_of(home)
    assert len(files) > 90
    assert findings(home, keys) == set()
    for path in [draw.choice(files) for _ in range(times)] or files:
        content = path.read_bytes()
        change(path, draw)
        named = findings(home, keys)
        assert path.relative_to(home).as_posix() in named, f"{change.__name__} {path}"
        assert path.name == "journal.jsonl" or len(named) == 1, named
        path.write_bytes(content)
    assert findings(home, keys) == set()


def test_a_file_added_anywhere_is_found_and_named(ran, home):
    keys = [stage.key for stage in ran[1].stages]
    directories = sorted(
        {path.parent for path in files_of(home)} | {home / "weights", home / "artifacts" / keys[0][:2]}
    )
    for directory in directories:
        path = directory / "added.parquet"
        path.write_bytes(b"PAR1")
        assert findings(home, keys) == {path.relative_to(home).as_posix()}
        path.unlink()
