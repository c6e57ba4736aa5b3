"""Second attempts: the policy answers again, given question, response and critique."""

from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import RefineParams, RolloutParams
from cgrpo_core.prompts import refinement_messages
from cgrpo_core.records import Critique, Policy, Problem, Prompt, Refinement, Response
from tasks.engines.protocol import Completion, SampleRequest, SamplingSettings
from tasks.policies import model_directory, sample_with
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, render

Place = tuple[Critique, Response, int]


@stage
def sample_refinements(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
    policy: list[Policy],
) -> Published:
    """Sample `per_response` refinements for each critique; a prompt that is too long is counted, not sampled."""
    params = context.block(RefineParams)
    requests, places, too_long = (
        _requests(context, critiques, responses, prompts, problems) if critiques else ([], {}, 0)
    )
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_response_tokens
    )
    sampled = sample_with(context, policy[0], requests, settings)
    refinements = [
        _refinement(request, completion, places[completion.request_id], policy[0])
        for request, completion in zip(requests, sampled.completions, strict=True)
    ]
    truncated = sum(refinement.finish_reason == "length" for refinement in refinements)
    return Published(
        tables={"refinements": refinements},
        counts={"refinements": len(refinements), "too_long": too_long, "truncated": truncated},
        metrics=sampled.metrics,
        evidence=sampled.evidence,
    )


def _requests(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
) -> tuple[list[SampleRequest], dict[str, Place], int]:
    params, template = context.block(RefineParams), context.block(RolloutParams).template
    tokenizer = load_tokenizer(str(model_directory(context)))
    response_of = {response.response_id: response for response in responses}
    slot_of = {prompt.prompt_id: prompt.slot for prompt in prompts}
    question_of = {problem.problem_id: problem.question for problem in problems}
    requests, places, too_long = [], {}, 0
    for critique in critiques:
        response = response_of[critique.response_id]
        messages = refinement_messages(question_of[response.problem_id], response.text, critique.text, template)
        _, token_ids = render(tokenizer, messages)
        if len(token_ids) > params.max_prompt_tokens:
            too_long += 1
            continue
        for index in range(params.per_response):
            refinement_id = make_id("f", context.key, critique.critique_id, index)
            slot = slot_of[response.group_id]
            seed = derive_seed(
                context.seed, "refine", context.iteration, slot, response.problem_id, response.index, index
            )
            places[refinement_id] = (critique, response, index)
            requests.append(SampleRequest(request_id=refinement_id, prompt_token_ids=tuple(token_ids), seed=seed))
    return requests, places, too_long


def _refinement(request: SampleRequest, completion: Completion, place: Place, policy: Policy) -> Refinement:
    critique, response, index = place
    return Refinement(
        refinement_id=completion.request_id,
        response_id=response.response_id,
        critique_id=critique.critique_id,
        group_id=response.group_id,
        problem_id=response.problem_id,
        index=index,
        prompt_token_ids=request.prompt_token_ids,
        text=completion.text,
        token_ids=completion.token_ids,
        sampling_logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        policy_version=policy.policy_version,
        seed=request.seed,
    )
