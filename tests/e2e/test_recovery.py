"""Kills: whatever dies, the run that is resumed ends with the weights of the run that was not disturbed."""

import os
import signal
import subprocess
import time

import pytest

from storage.artifacts import Store
from storage.runs import read_plan

pytestmark = pytest.mark.e2e
PATIENCE_S = 240


@pytest.fixture(scope="module")
def undisturbed(lab):
    lab.train("undisturbed", "run.seed=23")
    return lab.status("undisturbed")["weights_sha256"]


def published(lab, name: str) -> dict[tuple[str, int | None], float]:
    store = Store(lab.home)
    found = {}
    for stage in read_plan(lab.home, name).stages:
        manifest = store.find(stage.key)
        if manifest is not None:
            found[stage.stage, stage.iteration] = manifest.started_at
    return found


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def of_iteration(run: str, number: int) -> dict[str, object]:
    """Oldest first: in a mapping by name, the task run of the resumed flow replaces that of the killed one."""
    return {"flow_runs": {"name": {"any_": [f"{run} iteration {number}"]}}, "sort": "EXPECTED_START_TIME_ASC"}


@pytest.mark.parametrize("stage", ["prompts", "refine", "advantage", "update"])
def test_a_flow_killed_after_any_stage_resumes_to_the_same_weights_and_samples_nothing_twice(
    lab, stage, undisturbed, tmp_path
):
    """The kill falls while the stage after `stage` is being submitted or run."""
    other = type(lab)(tmp_path, {**lab.environment, "CGRPO_HOME": str(tmp_path)}, lab.sets)
    name = f"killed-after-{stage}"
    process = other.start("run", "critique-grpo", "--name", name, *other.settings("run.seed=23"))
    wait_until(lambda: (tmp_path / "runs" / name / "plan.json").exists(), process)
    wait_until(lambda: (stage, 1) in published(other, name), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = published(other, name)
    assert other.status(name)["state"] == "crashed"
    resumed = other.call("resume", name)
    assert resumed.returncode == 0, resumed.stderr
    after = published(other, name)
    assert {place: after[place] for place in before} == before
    state = other.status(name)
    assert (state["state"], state["weights_sha256"]) == ("completed", undisturbed)
    iteration = [place[0] for place in before if place[1] == 1]
    shown = {row["name"]: row["state_name"] for row in other.prefect("task_runs", **of_iteration(name, 1))}
    assert {shown[f"{name} {stage} 1.0"] for stage in iteration if f"{name} {stage} 1.0" in shown} == {"Cached"}
    twice = other.sql("select count(*) - count(distinct (iteration, problem_id, seed)) n from responses", name)
    assert twice == [{"n": 0}]
    other.call("engines", "--stop")


def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(lab, undisturbed):
    process = lab.start("run", "critique-grpo", "--name", "stopped", *lab.settings("run.seed=29"))
    wait_until(lambda: (lab.home / "runs" / "stopped" / "plan.json").exists(), process)
    wait_until(lambda: ("rollout", 1) in published(lab, "stopped"), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "cgrpo resume stopped" in output
    assert "Traceback" not in output
    assert lab.status("stopped")["state"] == "interrupted"
    assert lab.call("resume", "stopped").returncode == 0
    assert lab.status("stopped")["state"] == "completed"


def test_a_sampler_killed_while_it_samples_is_replaced_at_the_same_policy(lab, undisturbed):
    process = lab.start(
        "run",
        "critique-grpo",
        "--name",
        "sampler-killed",
        *lab.settings("run.seed=31", "rollout.max_response_tokens=5"),
    )
    wait_until(lambda: (lab.home / "runs" / "sampler-killed" / "plan.json").exists(), process)
    wait_until(lambda: ("prompts", 1) in published(lab, "sampler-killed"), process)
    killed = lab.engine_processes("Sampler")
    for one in killed:
        os.kill(one, signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert killed
    assert process.returncode == 0, output
    versions = lab.sql("select distinct iteration, policy_version from responses order by all", "sampler-killed")
    assert versions == [{"iteration": 1, "policy_version": 0}, {"iteration": 2, "policy_version": 1}]


def test_flow_runs_of_a_killed_process_are_marked_crashed_at_the_next_start(lab, undisturbed):
    """The kill falls in the second iteration: the flow, the iteration and its stages are left open in Prefect."""
    process = lab.start("run", "critique-grpo", "--name", "left-open", *lab.settings("run.seed=23", "run.iterations=3"))
    wait_until(lambda: (lab.home / "runs" / "left-open" / "plan.json").exists(), process)
    wait_until(lambda: ("rollout", 3) in published(lab, "left-open"), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ours = {"flow_runs": {"tags": {"all_": ["run:left-open"]}}}
    assert "RUNNING" in {row["state_type"] for row in lab.prefect("flow_runs", **ours)}
    assert lab.call("resume", "left-open").returncode == 0
    states = {row["state_type"] for row in lab.prefect("flow_runs", **ours)}
    assert states == {"CRASHED", "COMPLETED"}
    crashed = [row["state"] for row in lab.prefect("flow_runs", **ours) if row["state_type"] == "CRASHED"]
    assert all(f"process {process.pid} ended without a word" in state["message"] for state in crashed)
    tasks = lab.prefect("task_runs", task_runs={"tags": {"all_": ["run:left-open"]}})
    assert not {row["state_type"] for row in tasks} & {"RUNNING", "PENDING"}
