"""First attempts: a group of responses to each prompt."""

from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.params import RolloutParams
from cgrpo_core.records import Policy, Prompt, Response
from tasks.engines.protocol import SampleRequest, SamplingSettings
from tasks.policies import sample_with
from tasks.stage import Published, StageContext, stage


@stage
def sample_responses(context: StageContext, prompts: list[Prompt], policy: list[Policy]) -> Published:
    """Sample `group_size` responses to each prompt; each has a seed of its own, so its batch cannot matter."""
    params = context.block(RolloutParams)
    places = {
        make_id("r", context.key, prompt.prompt_id, index): (prompt, index)
        for prompt in prompts
        for index in range(params.group_size)
    }
    requests = [
        SampleRequest(
            request_id=response_id,
            prompt_token_ids=prompt.token_ids,
            seed=derive_seed(context.seed, "rollout", context.iteration, prompt.slot, prompt.problem_id, index),
        )
        for response_id, (prompt, index) in places.items()
    ]
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_response_tokens
    )
    sampled = sample_with(context, policy[0], requests, settings)
    responses = []
    for request, completion in zip(requests, sampled.completions, strict=True):
        prompt, index = places[completion.request_id]
        responses.append(
            Response(
                response_id=completion.request_id,
                group_id=prompt.prompt_id,
                problem_id=prompt.problem_id,
                index=index,
                text=completion.text,
                token_ids=completion.token_ids,
                sampling_logprobs=completion.logprobs,
                finish_reason=completion.finish_reason,
                policy_version=policy[0].policy_version,
                seed=request.seed,
            )
        )
    truncated = sum(response.finish_reason == "length" for response in responses)
    return Published(
        tables={"responses": responses},
        counts={"responses": len(responses), "truncated": truncated},
        metrics=sampled.metrics,
        evidence=sampled.evidence,
    )
