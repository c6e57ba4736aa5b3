"""A compacted run is the same run: its certificate, its history and its answers do not change, and damage is found."""

import json
import shutil

import pytest
from fake_run import fake_engines

from flows.audit import audit

QUERY = "select run, iteration, chunk, stage, subject_id, reward from verdicts order by all"


def silent(_: str) -> None:
    return None


@pytest.fixture
def home(ran, tmp_path, monkeypatch):
    """A copy of the complete run `one`, with engines that pretend. Times are kept, as by `cp -a`."""
    fake_engines(monkeypatch)
    shutil.copytree(ran[0], tmp_path / "home")
    return tmp_path / "home"


def test_every_command_that_asks_of_a_run_answers_as_before_it_was_compacted(home, cgrpo):
    asked = (
        ("status", "one", "--json"),
        ("sql", QUERY, "--json"),
        ("explain", "one", "update@2", "--json"),
        ("diff", "one", "one", "--json"),
        ("gc", "--dry-run", "--json"),
        ("resume", "nobody"),
    )
    fork = ("fork", "one@1", "--set", "loss.shaping.gamma=0.3", "--dry-run", "--json")
    before, shared = [cgrpo(*words) for words in asked], json.loads(cgrpo(*fork)[1])["totals"]
    root = audit(home, "one", silent).merkle_root
    code, out, _ = cgrpo("compact", "one", "--json")
    done = json.loads(out)
    assert (code, done["iterations"], done["stale"]) == (0, [0, 2], 0)
    assert done["rows"] > 0
    assert [cgrpo(*words) for words in asked] == before
    assert json.loads(cgrpo(*fork)[1])["totals"] == shared
    certificate = audit(home, "one", silent)
    assert (certificate.clean, certificate.merkle_root, certificate.notes) == (True, root, [])
    assert "every complete iteration is in its copy already" in cgrpo("compact")[2]


def test_an_audit_names_the_file_of_a_copy_in_which_a_byte_was_changed(home, cgrpo):
    cgrpo("compact")
    path = next((home / "compacted" / "one" / "000000-000002").glob("rollout.*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    certificate = audit(home, "one", silent)
    assert [finding["subject"] for finding in certificate.findings] == [path.relative_to(home).as_posix()]
    assert cgrpo("audit", "one")[0] == 1


def test_a_home_whose_copy_was_deleted_is_as_good_as_before(home, cgrpo):
    cgrpo("compact")
    before = cgrpo("sql", QUERY, "--json")
    shutil.rmtree(home / "compacted")
    assert cgrpo("sql", QUERY, "--json") == before
    assert audit(home, "one", silent).clean
