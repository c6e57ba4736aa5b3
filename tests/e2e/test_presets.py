"""Every preset trains two iterations, on each pipeline that it is for: the tiny model, real engines, one home.

The runs have one seed, so that what their keys have in common (setup, the first rollouts) is computed once.
"""

from pathlib import Path

import pytest

from flows.resolve import presets_for, read_declaration

pytestmark = pytest.mark.e2e

DECLARATION, _ = read_declaration(Path(__file__).parents[2] / "pipelines.yaml")
ARMS = [
    pytest.param(pipeline, preset, id=f"{pipeline}-{preset}")
    for pipeline in DECLARATION.pipelines
    for preset in presets_for(pipeline, DECLARATION)
]
SETS = ("run.seed=31", "run.prompts_per_iteration=4", "rollout.group_size=3", "evaluate.max_response_tokens=2")


@pytest.mark.parametrize(("pipeline", "preset"), ARMS)
def test_a_preset_trains_two_iterations(lab, pipeline, preset):
    name = f"preset-{pipeline}-{preset}".replace(".", "-")
    done = lab.call("run", pipeline, "--preset", preset, "--name", name, *lab.settings(*SETS))
    assert done.returncode == 0, done.stdout + done.stderr
    state = lab.status(name)
    assert (state["state"], state["policy_version"]) == ("completed", 2)
    updates = lab.sql("select status, non_finite_steps, samples, samples_trained from updates order by iteration", name)
    assert {row["status"] for row in updates} <= {"ok", "no_gradient"}
    assert "ok" in {row["status"] for row in updates}
    assert all(row["non_finite_steps"] == 0 for row in updates)
