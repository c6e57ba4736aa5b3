"""A run is frozen when it is made; its state is read off the lock, the manifests and the last attempt."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import storage_rows as rows_of
from storage_rows import a_manifest, a_plan, a_stage

from cgrpo_core.records import Policy
from storage.artifacts import Store
from storage.errors import RunBusy, RunCorrupt, RunExists, RunNameInvalid, RunNotFound
from storage.plans import StagePlan
from storage.runs import (
    RunLock,
    create_run,
    end_attempt,
    is_running,
    list_attempts,
    list_runs,
    open_run,
    read_plan,
    run_state,
    start_attempt,
)

INIT = a_stage("init_policy", {"policy": "Policy"})
UPDATES = [a_stage("update", {"policy": "Policy", "metrics": "UpdateMetrics"}, iteration=i) for i in (1, 2)]
EVALUATE = a_stage("evaluate", {"results": "EvalResult"}, iteration=2)
PLAN = a_plan(INIT, *UPDATES, EVALUATE)
OPTIONS = {"file": "pipelines.yaml", "profile": "cpu", "presets": ["paper_v6"], "sets": ["run.seed=18"]}
HOLDS_A_RUN = """
import sys, time
from pathlib import Path
from storage.runs import RunLock, start_attempt

home = Path(sys.argv[1])
with RunLock(home, "one"):
    start_attempt(home, "one")
    print("running", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_run(tmp_path, name="one", plan=PLAN, options=OPTIONS)
    return tmp_path


@contextlib.contextmanager
def another_process_runs_it(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDS_A_RUN, str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        try:
            yield process
        finally:
            process.kill()


def publish_policy(home: Path, stage: StagePlan, version: int) -> None:
    policy = rows_of.a_policy(policy_version=version, weights_sha256=f"{version:064d}")
    Store(home).publish(a_manifest(stage.key, stage=stage.stage), {"policy": (Policy, [policy])})


def test_a_run_keeps_what_was_asked_for_and_the_frozen_plan(home: Path) -> None:
    run = open_run(home, "one")
    assert (run.name, run.pipeline, run.parent, run.options) == ("one", "critique-grpo", None, OPTIONS)
    assert run.config == PLAN.config
    assert read_plan(home, "one") == PLAN


def test_a_second_run_of_the_same_name_is_refused_and_the_first_is_untouched(home: Path) -> None:
    with pytest.raises(RunExists, match="one") as caught:
        create_run(home, name="one", plan=a_plan(INIT), options={})
    assert "cgrpo resume one" in caught.value.hint
    assert read_plan(home, "one") == PLAN
    assert list((home / "tmp").iterdir()) == []


def test_without_a_name_the_newest_run_is_meant_and_a_new_one_is_named(home: Path) -> None:
    named = [create_run(home, name=None, plan=PLAN, options={}, parent="one") for _ in range(2)]
    assert len({run.name for run in named}) == 2
    assert all(run.name.startswith("critique-grpo-") for run in named)
    assert open_run(home).name == named[-1].name
    assert [run.name for run in list_runs(home)] == ["one", *(run.name for run in named)]
    assert open_run(home).parent == "one"


@pytest.mark.parametrize("name", ["", "One", "../one", "a/b", ".hidden", "-x", "a" * 65, "run\n", "räksmörgås"])
def test_a_name_that_is_no_directory_name_everywhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunNameInvalid, match="is no run name"):
        create_run(tmp_path, name=name, plan=PLAN, options={})
    with pytest.raises(RunNameInvalid):
        open_run(tmp_path, name)


def test_an_unknown_run_is_named_with_the_nearest(home: Path) -> None:
    with pytest.raises(RunNotFound) as caught:
        open_run(home, "onne")
    assert caught.value.hint == "did you mean one?"
    with pytest.raises(RunNotFound) as caught:
        open_run(home / "elsewhere")
    assert "cgrpo run" in caught.value.hint
    assert list_runs(home / "elsewhere") == []


def test_a_damaged_plan_is_named(home: Path) -> None:
    (home / "runs" / "one" / "plan.json").write_text('{"pipeline": "critique-grpo"')
    with pytest.raises(RunCorrupt, match=r"plan\.json"):
        run_state(home, "one")


def test_a_run_that_was_never_started_is_new(home: Path) -> None:
    state = run_state(home, "one")
    assert (state.state, state.iteration, state.iterations) == ("new", 0, 2)
    assert (state.policy_version, state.weights_sha256, state.error) == (None, None, None)
    assert (state.stages_published, state.stages_total) == (0, 4)


def test_the_iteration_and_the_policy_come_from_what_is_published(home: Path) -> None:
    publish_policy(home, INIT, 0)
    state = run_state(home)
    assert (state.iteration, state.policy_version, state.stages_published) == (0, 0, 1)
    publish_policy(home, UPDATES[0], 1)
    state = run_state(home)
    assert (state.iteration, state.policy_version, state.stages_published) == (1, 1, 2)
    assert state.weights_sha256 == f"{1:064d}"


def test_a_run_is_running_while_its_process_holds_the_lock(home: Path) -> None:
    with RunLock(home, "one"):
        start_attempt(home, "one")
        assert run_state(home, "one").state == "running"
    assert not is_running(home, "one")


@pytest.mark.parametrize("end", ["completed", "failed", "interrupted"])
def test_the_end_of_the_last_attempt_is_the_state_of_the_run(home: Path, end: str) -> None:
    with RunLock(home, "one"):
        end_attempt(home, "one", start_attempt(home, "one"), "failed", "the first attempt")
        end_attempt(home, "one", start_attempt(home, "one"), end, "out of memory \ud800" if end == "failed" else None)
    state = run_state(home, "one")
    assert state.state == end
    assert state.error == ("out of memory ?" if end == "failed" else None)
    first, second = list_attempts(home, "one")
    assert (first.number, first.state, second.number, second.state) == (1, "failed", 2, end)
    assert second.pid == os.getpid()
    assert second.ended_at is not None


def test_an_attempt_that_never_started_cannot_end(home: Path) -> None:
    with pytest.raises(RunCorrupt, match="no attempt 3"):
        end_attempt(home, "one", 3, "completed")


def test_a_killed_run_has_crashed_and_can_be_locked_again(home: Path) -> None:
    with another_process_runs_it(home) as process:
        assert run_state(home, "one").state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = run_state(home, "one")
        assert state.state == "crashed"
        assert str(process.pid) in str(state.error)
    with RunLock(home, "one"):
        end_attempt(home, "one", start_attempt(home, "one"), "completed")
    assert run_state(home, "one").state == "completed"


def test_a_second_process_is_refused_with_the_pid_of_the_first(home: Path) -> None:
    with another_process_runs_it(home) as process:
        with (
            pytest.raises(RunBusy, match=f"run one is being run by process {process.pid}") as caught,
            RunLock(home, "one"),
        ):
            pytest.fail("two processes run one run")
        assert "cgrpo status one" in caught.value.hint
        create_run(home, name="two", plan=PLAN, options={})
        with RunLock(home, "two"):
            assert is_running(home, "two")


def test_reading_the_state_does_not_stop_a_run_from_starting(home: Path) -> None:
    with RunLock(home, "one"):
        pass
    with (home / "runs" / "one" / "lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(reader, fcntl.LOCK_UN)).start()
        with RunLock(home, "one"):
            assert is_running(home, "one")
