"""What an audit accepts as trained: what was sampled, or the part of it that comes after a restart."""

from dataclasses import replace

from cgrpo_core.lineage import sample_faults
from cgrpo_core.records import Prompt, Refinement, Response, TrainingSample

PROMPT = Prompt(prompt_id="g", problem_id="q", iteration=1, slot=0, template="number", text="2 + 2?", token_ids=(1, 2))
RESPONSE = Response(
    response_id="r",
    group_id="g",
    problem_id="q",
    index=0,
    text="",
    token_ids=(5, 6, 7),
    sampling_logprobs=(-0.5, -0.25, -0.125),
    finish_reason="stop",
    policy_version=0,
    seed=1,
)
REFINEMENT = Refinement(
    refinement_id="f",
    response_id="r",
    critique_id="c",
    group_id="g",
    problem_id="q",
    index=0,
    prompt_token_ids=(1, 2, 5, 6),
    text="",
    token_ids=(9,),
    sampling_logprobs=(-1.0,),
    finish_reason="stop",
    policy_version=0,
    seed=2,
    kept_tokens=2,
    restart="named",
)
WHOLE = TrainingSample(
    sample_id="r",
    group_id="g",
    origin="response",
    prompt_token_ids=(1, 2),
    token_ids=(5, 6, 7),
    sampling_logprobs=(-0.5, -0.25, -0.125),
    reward=0.0,
    advantage=-0.5,
    weight=0.5,
)
SUFFIX = replace(WHOLE, prompt_token_ids=(1, 2, 5, 6), token_ids=(7,), sampling_logprobs=(-0.125,))
AGAIN = replace(
    SUFFIX,
    sample_id="f",
    origin="refinement",
    token_ids=(9,),
    sampling_logprobs=(-1.0,),
    context_token_ids=(1, 2, 5, 6),
)


def faults(*samples: TrainingSample) -> list[str]:
    return sample_faults(samples, [PROMPT], [RESPONSE], [REFINEMENT])


def test_a_response_is_trained_whole_or_after_the_tokens_that_its_refinement_kept() -> None:
    assert faults(WHOLE, AGAIN) == faults(SUFFIX, AGAIN) == []


def test_tokens_that_are_neither_trained_nor_given_are_a_fault() -> None:
    assert "another prompt" in faults(replace(SUFFIX, prompt_token_ids=(1, 2)))[0]
    assert "another prompt" in faults(replace(AGAIN, prompt_token_ids=(1, 2)))[0]
    assert "other token ids" in faults(replace(SUFFIX, token_ids=(8,)))[0]
    assert "other token ids" in faults(replace(AGAIN, sampling_logprobs=(-2.0,)))[0]
    assert "other token ids" in faults(replace(WHOLE, token_ids=(5, 6, 7, 8)))[0]
    assert "no refinement" in faults(replace(AGAIN, sample_id="x"))[0]
