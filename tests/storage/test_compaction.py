"""Compaction copies a run into large files: what is asked is answered alike, and nothing of the record changes."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import storage_rows as rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_rows import a_manifest, a_plan, a_stage

from storage import catalog, compaction
from storage.artifacts import Store
from storage.catalog import VIEWS, query
from storage.compacted import manifest_states, parts_of
from storage.compaction import compact
from storage.durable import drop_leftovers
from storage.errors import ArtifactCorrupt
from storage.gc import collect, find_garbage
from storage.integrity import check_copy, check_run_files
from storage.plans import Plan, StagePlan
from storage.runs import create_run, read_places, read_plan, run_state
from storage.schemas import RECORDS

SETUP = [a_stage("load_problems", {"problems": "Problem"}), a_stage("init_policy", {"policy": "Policy"})]


def silent(_: str) -> None:
    return None


def iteration(number: int) -> list[StagePlan]:
    explore = [
        a_stage(name, {output: record}, number, chunk)
        for chunk in (0, 1)
        for name, output, record in (
            ("prompts", "prompts", "Prompt"),
            ("rollout", "responses", "Response"),
            ("verify", "verdicts", "Verdict"),
        )
    ]
    return [*explore, a_stage("update", {"policy": "Policy", "metrics": "UpdateMetrics"}, number)]


def a_run(home: Path, iterations: int, name: str = "one") -> Plan:
    plan = a_plan(*SETUP, *(stage for number in range(1, iterations + 1) for stage in iteration(number)))
    create_run(home, name=name, plan=plan, options={})
    return plan


def rows(stage: StagePlan, count: int) -> dict[str, list]:
    """So many rows of the tables of a stage, named after its place; texts that Arrow cannot hold as they are."""
    place = f"{stage.iteration}.{stage.chunk}"
    made: dict[str, Callable[[int], object]] = {
        "Problem": lambda n: rows_of.a_problem(problem_id=f"p{n}"),
        "Prompt": lambda n: rows_of.a_prompt(prompt_id=f"g{place}.{n}"),
        "Response": lambda n: rows_of.a_response(response_id=f"r{place}.{n}", index=n, text=f"{n} \ud83d \x00 é"),
        "Verdict": lambda n: rows_of.a_verdict(subject_id=f"r{place}.{n}", answer=None, reward=float(n % 2)),
    }
    tables = {}
    for output, record in stage.outputs.items():
        if record == "Policy":
            tables[output] = [rows_of.a_policy(policy_version=stage.iteration or 0)]
        elif record == "UpdateMetrics":
            tables[output] = [rows_of.update_metrics(policy_version=stage.iteration or 0)]
        else:
            tables[output] = [made[record](n) for n in range(count)]
    return tables


def publish(home: Path, stage: StagePlan, count: int = 3, **changes: object) -> None:
    tables = {name: (RECORDS[stage.outputs[name]], found) for name, found in rows(stage, count).items()}
    place = {"stage": stage.stage, "task": stage.task, "iteration": stage.iteration, "chunk": stage.chunk}
    counts = {"counts": {"rows": count}, "metrics": {"seconds": 0.5}}
    Store(home).publish(a_manifest(stage.key, **{**place, **counts, **changes}), tables)


def publish_until(home: Path, plan: Plan, last: int, count: int = 3) -> None:
    for stage in plan.stages:
        if (stage.iteration or 0) <= last and not Store(home).has(stage.key):
            publish(home, stage, count)


def answers(home: Path, runs: list[str] | None = None) -> dict[str, list]:
    """Every row of every view."""
    with catalog.open_catalog(home, runs) as connection:
        views = [*VIEWS, "stages", "runs"]
        return {view: sorted(connection.execute(f"SELECT * FROM {view}").fetchall(), key=repr) for view in views}


def bytes_of(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for kind in ("artifacts", "runs")
        for path in sorted((home / kind).rglob("*"))
        if path.is_file() and path.name not in ("journal.jsonl", "lock")
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_until(tmp_path, a_run(tmp_path, 4), 3)
    return tmp_path


@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(0, 5), min_size=2, max_size=4),
    group=st.integers(1, 7),
    cuts=st.sets(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_whatever_is_copied_when_every_view_answers_as_before(tmp_path_factory, counts, group, cuts, seed) -> None:
    """counts: rows of an iteration; group: rows of a row group; cuts: iterations after which it is compacted."""
    home = tmp_path_factory.mktemp("home")
    plan = a_run(home, len(counts))
    draw = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "GROUP_ROWS", group)
        for number, count in enumerate([2, *counts]):
            stages = [stage for stage in plan.stages if (stage.iteration or 0) == number]
            for stage in stages if number < len(counts) else draw.sample(stages, len(stages) // 2):
                publish(home, stage, count)
            before, bytes_before = answers(home), bytes_of(home)
            if number in cuts:
                compact(home, "one", silent)
            assert answers(home) == before
            assert bytes_of(home) == bytes_before
    parts = parts_of(home, "one")
    assert [part.first for part in parts] == [0, *(part.last + 1 for part in parts)][: len(parts)]
    shutil.rmtree(home)


def test_the_copy_is_what_is_read(home: Path, monkeypatch) -> None:
    done = compact(home, "one", silent)
    assert (done.iterations, done.stages, done.stale) == ((0, 3), 2 + 3 * 7, 0)
    assert done.rows == 3 + 1 + 3 * (2 * 3 * 3 + 2)
    read: list[str] = []
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda store, key: read.append(key) or find(store, key))
    connection = catalog.open_catalog(home, ["one"])
    left = {stage.key for stage in iteration(4)}
    newest = next(stage.key for stage in iteration(3) if stage.stage == "update")
    assert set(read) <= left | {newest}
    assert connection.execute("SELECT count(*) FROM responses WHERE iteration = 2 AND chunk = 1").fetchall() == [(3,)]
    assert connection.execute("SELECT count(*) FROM stages WHERE published").fetchall() == [(23,)]


def test_places_of_a_copy_are_those_of_the_plan(home: Path) -> None:
    before, state = read_places(home, "one"), run_state(home, "one")
    compact(home, "one", silent)
    assert read_places(home, "one") == before
    assert run_state(home, "one") == state


def test_a_second_compaction_copies_what_has_come_since_and_a_third_one_nothing(home: Path) -> None:
    compact(home, "one", silent)
    publish_until(home, read_plan(home, "one"), 4)
    assert compact(home, "one", silent).iterations == (4, 4)
    before = answers(home)
    assert compact(home, "one", silent).iterations is None
    assert answers(home) == before
    assert [(part.first, part.last) for part in parts_of(home, "one")] == [(0, 3), (4, 4)]


def test_an_artifact_that_was_made_anew_is_seen_at_once_and_copied_anew_when_asked(home: Path) -> None:
    compact(home, "one", silent)
    stage = iteration(2)[1]
    shutil.rmtree(Store(home).path(stage.key))
    assert query(home, "SELECT count(*) FROM responses").rows == [(15,)]
    publish(home, stage, count=5)
    assert query(home, "SELECT count(*) FROM responses").rows == [(20,)]
    assert [finding.severity for finding in check_copy(home, "one")] == ["note"]
    assert compact(home, "one", silent).stale == 1
    assert query(home, "SELECT count(*) FROM responses").rows == [(20,)]
    assert list(check_copy(home, "one")) == []


def test_a_damaged_artifact_is_named_and_never_copied(home: Path) -> None:
    path = Store(home).path(iteration(2)[1].key) / "responses.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactCorrupt, match=r"responses\.parquet"):
        compact(home, "one", silent)
    assert parts_of(home, "one") == []
    assert list((home / "tmp").iterdir()) == []


def test_a_byte_that_is_changed_in_a_copy_is_found_and_its_file_is_named(home: Path) -> None:
    compact(home, "one", silent)
    assert list(check_copy(home, "one")) == []
    draw = random.Random(5)
    files = sorted(path for path in (home / "compacted").rglob("*") if path.is_file())
    assert len(files) == 10
    for path in files * 2:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        state = path.stat()
        path.write_bytes(bytes(changed))
        named = {finding.subject for finding in check_copy(home, "one") if finding.severity == "damage"}
        assert named == {path.relative_to(home).as_posix()}
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert list(check_copy(home, "one")) == []
    assert not [finding for finding in check_run_files(home, "one") if finding.severity == "damage"]


def test_a_copy_without_a_readable_list_of_stages_is_not_used(home: Path) -> None:
    before = answers(home)
    compact(home, "one", silent)
    for path in (home / "compacted").rglob("stages.parquet"):
        path.write_bytes(b"PAR1")
    assert answers(home) == before


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_kill_at_any_moment_loses_nothing_and_the_next_compaction_ends_as_the_undisturbed_one(
    home: Path, moment: int
) -> None:
    """moment: the how manieth time that the child makes something durable."""
    before, bytes_before = answers(home), bytes_of(home)
    child = os.fork()
    if child == 0:
        calls = 0
        fsync = os.fsync

        def killed(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = killed
        compact(home, "one", silent)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    assert answers(home) == before
    compact(home, "one", silent)
    assert answers(home) == before
    assert bytes_of(home) == bytes_before
    assert [(part.first, part.last) for part in parts_of(home, "one")] == [(0, 3)]
    drop_leftovers(home)
    assert list(check_copy(home, "one")) == []


def test_a_run_of_the_same_name_does_not_get_the_copy_of_the_one_before(home: Path) -> None:
    compact(home, "one", silent)
    shutil.rmtree(home / "runs" / "one")
    create_run(home, name="one", plan=a_plan(*SETUP, *iteration(1)), options={})
    assert parts_of(home, "one") == []
    assert query(home, "SELECT count(*) FROM responses").rows == [(6,)]
    assert compact(home, "one", silent).iterations == (0, 1)
    assert query(home, "SELECT count(*) FROM responses").rows == [(6,)]


def test_two_runs_that_share_artifacts_have_a_copy_each(home: Path) -> None:
    create_run(home, name="two", plan=a_plan(*SETUP, *iteration(1)), options={}, parent="one")
    before = answers(home)
    compact(home, "two", silent)
    assert answers(home) == before
    compact(home, "one", silent)
    assert answers(home) == before
    assert query(home, "SELECT count(*) FROM responses", runs=["two"]).rows == [(6,)]


def test_cleaning_up_takes_the_copy_of_a_run_that_is_gone_and_no_other(home: Path) -> None:
    create_run(home, name="two", plan=a_plan(*SETUP, *iteration(1)), options={}, parent="one")
    compact(home, "one", silent)
    compact(home, "two", silent)
    shutil.rmtree(home / "runs" / "two")
    garbage = [item for item in find_garbage(home) if item.kind == "copy"]
    assert [item.path for item in garbage] == ["compacted/two"]
    assert collect(home, garbage) > 0
    assert [path.name for path in (home / "compacted").iterdir()] == ["one"]


def test_states_of_manifests_are_those_of_what_is_published(home: Path) -> None:
    keys = [stage.key for stage in read_plan(home, "one").stages]
    states = manifest_states(home, keys)
    assert list(states) == [key for key in keys if Store(home).has(key)]
    path = Store(home).path(keys[0]) / "manifest.json"
    assert states[keys[0]] == (path.stat().st_size, path.stat().st_mtime_ns)
