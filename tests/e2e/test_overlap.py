"""Chunks overlap: while one chunk still samples, another is verified, critiqued and refined."""

import pytest
from tiny_model import build_tiny_model

pytestmark = pytest.mark.e2e


def test_the_second_chunk_samples_while_the_first_is_verified_critiqued_and_refined(lab, tmp_path):
    """The sampler takes three responses at a time, of a model that hardly ever stops by itself.

    Looked at in the second iteration: in the first one the workers of Ray still import what they need.
    """
    home = tmp_path / "home"
    other = type(lab)(home, {**lab.environment, "CGRPO_HOME": str(home)}, lab.sets)
    model = build_tiny_model(tmp_path / "model")
    other.train(
        "overlap",
        f"inputs.base_model={{kind: path, path: {model}}}",
        "run.chunks=2",
        "rollout.max_response_tokens=600",
        "refine.max_prompt_tokens=900",
        "engines.sampler.options.max_model_len=1024",
        "engines.sampler.options.max_num_seqs=3",
    )
    rows = other.sql(
        "select other.stage from stages r "
        "join stages other on r.iteration = other.iteration and r.chunk <> other.chunk "
        "where r.iteration = 2 and r.stage = 'rollout' "
        "and r.started_at < other.started_at and other.started_at < r.ended_at",
        "overlap",
    )
    assert {"verify", "critique", "refine"} <= {row["stage"] for row in rows}
    other.call("engines", "--stop")
