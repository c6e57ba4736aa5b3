"""Every preset trains two iterations, on each pipeline that it is for: the tiny model, real engines, one home.

The runs have one seed, so that what their keys have in common (setup, the first rollouts) is computed once, and one
process, so that what a command loads is loaded once.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.resolve import presets_for, read_declaration
from storage.catalog import query
from storage.runs import run_state

pytestmark = pytest.mark.e2e

MARK = "arm: "
ROOT = Path(__file__).parents[2]
DECLARATION, _ = read_declaration(ROOT / "pipelines.yaml")
ARMS = [
    pytest.param(pipeline, preset, id=f"{pipeline}-{preset}")
    for pipeline in DECLARATION.pipelines
    for preset in presets_for(pipeline, DECLARATION)
]
SETS = ("run.seed=31", "run.prompts_per_iteration=4", "rollout.group_size=3", "checkpoint.every=9")


@pytest.fixture(scope="module")
def train(lab, tmp_path_factory) -> Iterator[Callable[..., str | None]]:
    """Train an arm; return what went wrong, or None."""
    log = (tmp_path_factory.mktemp("arms") / "log").open("w+")
    command = [sys.executable, str(Path(__file__).parent / "train_arms.py"), MARK]
    environment = {**lab.environment, "PYTHONPATH": str(ROOT), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )

    def trained(**arm: object) -> str | None:
        child.stdin.write(json.dumps(arm) + "\n")
        child.stdin.flush()
        reply = next((line for line in child.stdout if line.startswith(MARK)), None)
        if reply is None:
            log.seek(0)
            return log.read()[-4000:]
        fault: str | None = json.loads(reply.removeprefix(MARK))
        return fault

    yield trained
    child.stdin.close()
    child.wait(timeout=60)
    log.close()


@pytest.mark.parametrize(("pipeline", "preset"), ARMS)
def test_a_preset_trains_two_iterations(lab, train, pipeline, preset):
    name = f"preset-{pipeline}-{preset}".replace(".", "-")
    sets = [*lab.sets, *SETS]
    assert train(pipeline=pipeline, profile="cpu", presets=[preset], sets=sets, name=name) is None
    state = run_state(lab.home, name)
    assert (state.state, state.policy_version) == ("completed", 2)
    rows = query(lab.home, "select status, non_finite_steps, samples_trained from updates", runs=[name]).rows
    assert {status for status, _, _ in rows} <= {"ok", "no_gradient"}
    assert any(status == "ok" and trained > 0 for status, _, trained in rows)
    assert all(faults == 0 for _, faults, _ in rows)
