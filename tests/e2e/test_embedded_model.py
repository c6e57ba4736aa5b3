"""The embedded model, as `make train` uses it: it answers, is critiqued, refines, learns and is evaluated."""

import os

import pytest

pytestmark = pytest.mark.e2e


def test_the_embedded_model_trains_for_an_iteration(lab, tmp_path_factory):
    home = tmp_path_factory.mktemp("embedded")
    lab = type(lab)(home, {**lab.environment, "CGRPO_HOME": str(home), **_model_cache()})
    part = "{kind: reasoning_gym, task: two_digit_sums, size: %d, seed: %d, split: {part: %s, eval_share: 0.3}}"
    settings = [
        f"inputs.problems={part % (12, 17, 'train')}",
        f"inputs.eval_problems={part % (4, 18, 'eval')}",
        "run.iterations=1",
        "run.prompts_per_iteration=3",
        "rollout.group_size=4",
        "rollout.max_response_tokens=16",
        "refine.max_response_tokens=16",
    ]
    lab.train("embedded", *settings)
    update = lab.sql("select status, logprob_gap_max, grad_norm from updates", "embedded")[0]
    assert update["status"] == "ok"
    assert update["logprob_gap_max"] < 1e-4
    assert update["grad_norm"] > 0
    refined = lab.sql("select count(*) n from refinements", "embedded")
    assert refined[0]["n"] > 0
    assert lab.sql("select count(*) n from evaluations", "embedded") == [{"n": 8}]
    lab.call("engines", "--stop")


def _model_cache() -> dict[str, str]:
    """The conversion is shared with `make train`, unless the environment says where it is kept."""
    from pathlib import Path

    return {"CGRPO_MODEL_CACHE": os.environ.get("CGRPO_MODEL_CACHE", str(Path(__file__).parents[2] / ".cgrpo/models"))}
