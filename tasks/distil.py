"""Rows for self-distillation: responses, each with the prompt that shows its critique too (cgrpo_core/sdpo.py)."""

from pathlib import Path
from typing import Any

from cgrpo_core.params import RefineParams, RolloutParams
from cgrpo_core.records import Critique, Problem, Prompt, Response, TrainingSample, Verdict
from tasks.models import resolve_model
from tasks.refine_requests import Attempts, Material, each_response
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer


@stage
def build_distillation_samples(
    context: StageContext,
    prompts: list[Prompt],
    responses: list[Response],
    verdicts: list[Verdict],
    critiques: list[Critique],
    problems: list[Problem],
    model: dict[str, Any],
) -> Published:
    """Make a row of each response that has a critique: its context is the prompt that would ask for a refinement.

    A context that is too long is counted, and its response not distilled into. What cannot be judged has no critique.
    """
    reward_of = {verdict.subject_id: verdict.reward for verdict in verdicts}
    prompt_of = {prompt.prompt_id: prompt for prompt in prompts}
    shown = _contexts(context, prompts, responses, critiques, problems, model) if critiques else Attempts()
    samples = [
        TrainingSample(
            sample_id=attempt.response.response_id,
            group_id=attempt.response.group_id,
            origin="response",
            prompt_token_ids=prompt_of[attempt.response.group_id].token_ids,
            token_ids=attempt.response.token_ids,
            sampling_logprobs=attempt.response.sampling_logprobs,
            reward=reward_of[attempt.response.response_id] or 0.0,
            advantage=1.0,
            weight=1.0,
            context_token_ids=attempt.request.prompt_token_ids,
        )
        for attempt in shown.attempts
        if attempt.index == 0
    ]
    judged = [reward for row in responses if (reward := reward_of[row.response_id]) is not None]
    groups = len(prompts)
    counts = {
        "groups": groups,
        "groups_without_gradient": groups - len({sample.group_id for sample in samples}),
        "samples": len(samples),
        "judged": len(judged),
        "without_verdict": len(responses) - len(judged),
        "without_critique": len(responses) - sum(critique.degraded != "skipped" for critique in critiques),
        **shown.counts,
    }
    return Published(tables={"samples": samples}, counts=counts, metrics={"reward_sum": sum(judged)})


def _contexts(
    context: StageContext,
    prompts: list[Prompt],
    responses: list[Response],
    critiques: list[Critique],
    problems: list[Problem],
    model: dict[str, Any],
) -> Attempts:
    material = Material(
        context=context,
        params=context.block(RefineParams),
        template=context.block(RolloutParams).template,
        tokenizer=load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir)))),
        critiques=[critique for critique in critiques if critique.degraded != "skipped"],
        responses={response.response_id: response for response in responses},
        prompts={prompt.prompt_id: prompt for prompt in prompts},
        questions={problem.problem_id: problem.question for problem in problems},
    )
    return each_response(material)
