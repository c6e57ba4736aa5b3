"""Second attempts: the policy answers again, given question, responses and critiques; or another model does.

An engine with a fixed policy may be bound to this stage (weak-to-strong). What it writes is trained on as the policy's
tokens, so its tokenizer must be the policy's own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.params import RefineParams, RolloutParams
from cgrpo_core.records import Critique, Policy, Problem, Prompt, Refinement, Response
from tasks.aggregate import all_responses
from tasks.engines.protocol import Completion, SamplingSettings
from tasks.models import resolve_model
from tasks.policies import model_directory, model_of_engine, sample_with, served_policy
from tasks.refine_requests import Attempt, Attempts, Material, each_response
from tasks.resample import question_alone
from tasks.restart import from_named_step
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer

MODES: Mapping[str, Callable[[Material], Attempts]] = {
    "each": each_response,
    "aggregate": all_responses,
    "resample": question_alone,
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
    model: dict[str, Any],
) -> Published:
    """Sample the refinements that `refine.mode` asks for. A critique that gets none is a row that says why."""
    params = context.block(RefineParams)
    planned = Attempts()
    if critiques:
        planned = _plan(context, critiques, responses, prompts, problems, _tokenizer(context, model))
    settings = SamplingSettings(
        temperature=params.temperature, top_p=params.top_p, max_tokens=params.max_response_tokens
    )
    sampled = sample_with(context, policy[0], [attempt.request for attempt in planned.attempts], settings)
    writer, served = model_of_engine(context), served_policy(context, policy[0])
    refinements = [
        _refinement(attempt, completion, writer, served)
        for attempt, completion in zip(planned.attempts, sampled.completions, strict=True)
    ]
    counts = {
        "refinements": len(refinements),
        "too_long": 0,
        "truncated": sum(row.finish_reason == "length" for row in refinements),
        "prompts_cut": sum(bool(row.cut_response_tokens or row.cut_critique_tokens) for row in refinements),
    }
    return Published(
        tables={"refinements": refinements, "skipped": planned.skipped},
        counts={**counts, **planned.counts},
        metrics=sampled.metrics,
        evidence=sampled.evidence,
    )


def _plan(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
    tokenizer: Any,
) -> Attempts:
    params = context.block(RefineParams)
    material = Material(
        context=context,
        params=params,
        template=context.block(RolloutParams).template,
        tokenizer=tokenizer,
        critiques=[critique for critique in critiques if critique.degraded != "skipped"],
        responses={response.response_id: response for response in responses},
        prompts={prompt.prompt_id: prompt for prompt in prompts},
        questions={problem.problem_id: problem.question for problem in problems},
    )
    planned = MODES[params.mode](material)
    for critique in critiques:
        if critique.degraded == "skipped":
            planned.skip(material, critique, "no_critique")
    return planned


def _tokenizer(context: StageContext, model: dict[str, Any]) -> Any:
    """Return the tokenizer of the stage's engine. Raises UserError if it is not the policy's."""
    own = load_tokenizer(str(model_directory(context)))
    policys = load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir))))
    if own is not policys and (own.get_vocab(), own.eos_token_id) != (policys.get_vocab(), policys.eos_token_id):
        raise UserError(
            f"stage {context.plan.stage}: the tokenizer of its engine is not the policy's, which learns its tokens",
            "bind a model of the policy's own family, with the same vocabulary",
        )
    return own


def _refinement(attempt: Attempt, completion: Completion, model: str, served: Policy) -> Refinement:
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
        policy_version=served.policy_version,
        seed=attempt.request.seed,
        responses_quoted=attempt.responses_quoted,
        kept_tokens=attempt.kept_tokens,
        restart=attempt.restart,
        model=model,
        cut_response_tokens=attempt.cut_tokens[0],
        cut_critique_tokens=attempt.cut_tokens[1],
    )
