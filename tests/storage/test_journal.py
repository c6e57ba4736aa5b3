"""The journal of a run says what its files and artifacts were; whatever is done to it later, it shows."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from storage_rows import a_manifest, a_plan, a_policy, a_stage

from cgrpo_core.records import Policy
from storage.artifacts import Store
from storage.code_identity import code_identity
from storage.errors import ArtifactCorrupt
from storage.journal import JOURNAL, Entry, append, file_sha256, read_journal
from storage.policies import DIGESTS, publish_directory
from storage.runs import create_run, end_attempt, open_run, run_directory, start_attempt
from storage.sealing import seal_stages

UPDATE = a_stage("update", {"policy": "Policy"}, iteration=1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_run(tmp_path, name="one", plan=a_plan(UPDATE), options={})
    return tmp_path


def publish_update(home: Path) -> None:
    relative = publish_directory(home, "weights", UPDATE.key, lambda path: (path / "w").write_bytes(b"1"))
    manifest = a_manifest(UPDATE.key, stage="update", directories={"weights": relative})
    Store(home).publish(manifest, {"policy": (Policy, [a_policy(policy_version=1)])})


def entries(count: int) -> list[Entry]:
    return [Entry(kind="artifact", name=f"{number:064x}", sha256=f"{number:064d}") for number in range(count)]


def test_a_new_run_has_the_digests_of_its_plan_and_of_what_was_asked(home: Path) -> None:
    directory = run_directory(home, "one")
    recorded = read_journal(directory).recorded("file")
    assert recorded == {name: {file_sha256(directory / name)} for name in ("plan.json", "run.json")}


def test_both_ends_of_an_attempt_are_recorded_so_that_a_journal_cut_short_shows(home: Path) -> None:
    number = start_attempt(home, "one")
    path = run_directory(home, "one") / "attempts" / "1.json"
    started = file_sha256(path)
    end_attempt(home, "one", number, "completed")
    recorded = read_journal(run_directory(home, "one")).recorded("file")
    assert recorded["attempts/1.json"] == {started, file_sha256(path)}


def test_published_stages_and_the_directories_they_wrote_are_sealed_once(home: Path) -> None:
    assert seal_stages(home, "one", [UPDATE]) == 0
    publish_update(home)
    assert seal_stages(home, "one", [UPDATE]) == 2
    assert seal_stages(home, "one", [UPDATE]) == 0
    journal = read_journal(run_directory(home, "one"))
    assert journal.recorded("artifact") == {
        UPDATE.key: {file_sha256(Store(home).path(UPDATE.key) / "manifest.json")},
    }
    relative = f"weights/{UPDATE.key}"
    assert journal.recorded("directory") == {relative: {file_sha256(home / relative / DIGESTS)}}


def test_a_manifest_changed_between_publish_and_seal_is_refused(home: Path) -> None:
    publish_update(home)
    path = Store(home).path(UPDATE.key) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"102.5", b"102.6"))
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.sha256"):
        seal_stages(home, "one", [UPDATE])


def test_any_byte_changed_added_or_taken_from_the_journal_breaks_its_chain(tmp_path: Path) -> None:
    append(tmp_path, entries(6))
    path, draw = tmp_path / JOURNAL, random.Random(3)
    content = path.read_bytes()
    for _ in range(300):
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= draw.randrange(1, 256)
        path.write_bytes(bytes(changed))
        assert read_journal(tmp_path).damage, place
    lines = content.splitlines(keepends=True)
    for number in range(len(lines) - 1):
        path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        assert read_journal(tmp_path).damage, number
    path.write_bytes(content + content[-20:])
    assert read_journal(tmp_path).damage


def test_what_a_power_cut_left_of_a_line_is_cut_off_by_the_next_entry(tmp_path: Path) -> None:
    first, second = entries(2)
    append(tmp_path, [first])
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b"0123456789abcdef {")
    assert read_journal(tmp_path).damage == "the last line is cut off"
    append(tmp_path, [second])
    journal = read_journal(tmp_path)
    assert (journal.entries, journal.damage) == ((first, second), None)


def test_an_attempt_killed_before_it_ended_leaves_a_journal_that_the_next_one_goes_on_with(home: Path) -> None:
    script = "import sys, time; from pathlib import Path; from storage.runs import start_attempt\n"
    script += "start_attempt(Path(sys.argv[1]), 'one'); print('started', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGKILL)
    publish_update(home)
    assert seal_stages(home, "one", [UPDATE]) == 2
    assert start_attempt(home, "one") == 2
    journal = read_journal(run_directory(home, "one"))
    assert journal.damage is None
    assert set(journal.recorded("file")) == {"plan.json", "run.json", "attempts/1.json", "attempts/2.json"}


def test_a_run_says_which_code_planned_it(home: Path) -> None:
    code = open_run(home, "one").code
    assert code == code_identity()
    assert len(code["sources_sha256"]) == 64
    assert code["libraries"]["duckdb"]
    assert (code["commit"] is None) == (code["dirty"] is None)
    assert str(os.sep + "storage") not in str(code), "no path of this machine"


def test_nothing_writes_into_a_run_s_directory_behind_the_journal_s_back() -> None:
    root = Path(__file__).parents[2]
    sources = [path for package in ("flows", "tasks", "storage") for path in (root / package).rglob("*.py")]
    imports = re.compile(r"^from storage\.durable import .*replace_file", re.MULTILINE)
    assert {path.name for path in sources if imports.search(path.read_text())} == {"journal.py"}
