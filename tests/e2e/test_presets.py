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
from critique_server import Say, critique_server

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
SETS = (
    *("run.seed=31", "run.prompts_per_iteration=4", "rollout.group_size=3", "checkpoint.every=9"),
    # The tiny model reads bytes: what it writes critiques from is longer than the profile has room for, and it states
    # no verdict, so that by default none of its critiques would be kept.
    *("engines.sampler.options.max_model_len=1024", "critique.max_prompt_tokens=900", "refine.max_prompt_tokens=480"),
    *("critique.max_critique_tokens=8", "critique.attempts=2", "limits.degraded_critiques_max=1"),
)
VARIABLE = "CGRPO_TEST_CRITIQUE_KEY"  # conftest.py puts it into the environment of the cluster


@pytest.fixture(scope="module")
def others(lab) -> Iterator[list[str]]:
    """Settings of the models besides the policy: a scripted critique model, and the tiny model once more as helper."""
    helper = next(one for one in lab.sets if one.startswith("inputs.base_model")).replace("base_model", "helper_model")
    with critique_server(lambda body, before: Say("It adds wrongly.\nVerdict: wrong")) as server:
        options = f"model: scripted, base_url: '{server.base_url}', api_key_env: {VARIABLE}"
        room = ["engines.helper.options.kv_cache_gib=0.1", "engines.helper.options.max_model_len=1024"]
        yield [helper, f"engines.critiquer.options={{{options}}}", *room]


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
    lab.call("engines", "--stop")  # engines of other shapes than those of the tests to come


@pytest.mark.parametrize(("pipeline", "preset"), ARMS)
def test_a_preset_trains_two_iterations(lab, train, others, pipeline, preset):
    name = f"preset-{pipeline}-{preset}".replace(".", "-")
    sets = [*lab.sets, *SETS, *others]
    assert train(pipeline=pipeline, profile="cpu", presets=[preset], sets=sets, name=name) is None
    state = run_state(lab.home, name)
    assert (state.state, state.policy_version) == ("completed", 2)
    rows = query(lab.home, "select status, non_finite_steps, samples_trained from updates", runs=[name]).rows
    assert {status for status, _, _ in rows} <= {"ok", "no_gradient"}
    assert any(status == "ok" and trained > 0 for status, _, trained in rows)
    assert all(faults == 0 for _, faults, _ in rows)
