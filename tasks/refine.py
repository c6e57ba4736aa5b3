"""Second attempts: the policy answers again, given question, responses and critiques."""

from collections.abc import Callable, Mapping

from cgrpo_core.params import RefineParams, RolloutParams
from cgrpo_core.records import Critique, Policy, Problem, Prompt, Refinement, Response
from tasks.aggregate import all_responses
from tasks.engines.protocol import Completion, SamplingSettings
from tasks.policies import model_directory, sample_with
from tasks.refine_requests import Attempt, Attempts, Material, each_response
from tasks.restart import from_named_step
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer

MODES: Mapping[str, Callable[[Material], Attempts]] = {
    "each": each_response,
    "aggregate": all_responses,
    "restart": from_named_step,
}


@stage
def sample_refinements(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
    policy: list[Policy],
) -> Published:
    """Sample the refinements that `refine.mode` asks for; a prompt that is too long is counted, not sampled."""
    params = context.block(RefineParams)
    planned = _plan(context, critiques, responses, prompts, problems) if critiques else Attempts()
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_response_tokens
    )
    sampled = sample_with(context, policy[0], [attempt.request for attempt in planned.attempts], settings)
    refinements = [
        _refinement(attempt, completion, policy[0])
        for attempt, completion in zip(planned.attempts, sampled.completions, strict=True)
    ]
    truncated = sum(refinement.finish_reason == "length" for refinement in refinements)
    return Published(
        tables={"refinements": refinements},
        counts={"refinements": len(refinements), "too_long": 0, "truncated": truncated, **planned.counts},
        metrics=sampled.metrics,
        evidence=sampled.evidence,
    )


def _plan(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
) -> Attempts:
    params = context.block(RefineParams)
    material = Material(
        context=context,
        params=params,
        template=context.block(RolloutParams).template,
        tokenizer=load_tokenizer(str(model_directory(context))),
        critiques=critiques,
        responses={response.response_id: response for response in responses},
        prompts={prompt.prompt_id: prompt for prompt in prompts},
        questions={problem.problem_id: problem.question for problem in problems},
    )
    return MODES[params.mode](material)


def _refinement(attempt: Attempt, completion: Completion, policy: Policy) -> Refinement:
    response = attempt.response
    return Refinement(
        refinement_id=completion.request_id,
        response_id=response.response_id,
        critique_id=attempt.critique.critique_id,
        group_id=response.group_id,
        problem_id=response.problem_id,
        index=attempt.index,
        prompt_token_ids=attempt.request.prompt_token_ids,
        text=attempt.kept_text + completion.text,
        token_ids=completion.token_ids,
        sampling_logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        policy_version=policy.policy_version,
        seed=attempt.request.seed,
        responses_quoted=attempt.responses_quoted,
        kept_tokens=attempt.kept_tokens,
        restart=attempt.restart,
    )
