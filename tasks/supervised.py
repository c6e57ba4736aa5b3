"""Rows that are imitated: worked solutions, correct responses and refinements, critiques (cgrpo_core/supervised.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgrpo_core.ids import derive_seed, make_id
from cgrpo_core.luffy import SOLUTION_REWARD, ended
from cgrpo_core.params import RolloutParams, SupervisedParams
from cgrpo_core.records import (
    Critique,
    Origin,
    Problem,
    Prompt,
    Refinement,
    Response,
    Solution,
    TrainingSample,
    Verdict,
)
from cgrpo_core.restarts import given_tokens
from cgrpo_core.rewards import CORRECT_REWARD
from cgrpo_core.supervised import critique_request_messages, imitated_ids
from tasks.models import resolve_model
from tasks.stage import Published, StageContext, stage
from tasks.tokenizer import load_tokenizer, render


@stage
def imitate_solutions(context: StageContext, prompts: list[Prompt], solutions: list[Solution]) -> Published:
    """Make a row of each worked solution, as a continuation of the question."""
    prompt_of = {prompt.prompt_id: prompt.token_ids for prompt in prompts}
    samples = [
        _sample(
            row.solution_id, row.group_id, "solution", prompt_of[row.group_id], row.token_ids, reward=SOLUTION_REWARD
        )
        for row in solutions
    ]
    return Published(tables={"samples": samples}, counts=_counts(samples, groups=len(prompts)))


@stage
def imitate_completions(
    context: StageContext,
    prompts: list[Prompt],
    responses: list[Response],
    verdicts: list[Verdict],
    refinements: Sequence[Refinement] = (),
    refinement_verdicts: Sequence[Verdict] = (),
) -> Published:
    """Make a row of correct responses, correct refinements or both, each as a continuation of the question alone."""
    params = context.block(SupervisedParams)
    reward_of = {verdict.subject_id: verdict.reward for verdict in [*verdicts, *refinement_verdicts]}
    seed = derive_seed(context.seed, "supervised", context.iteration)
    candidates: list[tuple[Response | Refinement, str, Origin]] = []
    if params.imitate != "refinements":
        candidates += [(row, row.response_id, "response") for row in responses]
    if params.imitate != "responses":
        candidates += [(row, row.refinement_id, "refinement") for row in refinements]
    chosen: set[str] = set()
    for origin in ("response", "refinement"):
        rows = [(row_id, row.group_id, reward_of[row_id]) for row, row_id, of in candidates if of == origin]
        chosen |= imitated_ids(rows, params.keep, seed)
    prompt_of = {prompt.prompt_id: prompt.token_ids for prompt in prompts}
    given = given_tokens([row for row, _, _ in candidates], responses, "whole")
    samples = [
        _sample(
            row_id,
            row.group_id,
            origin,
            prompt_of[row.group_id] + given[row_id],
            row.token_ids,
            reward=CORRECT_REWARD,
            sampling_logprobs=row.sampling_logprobs,
        )
        for row, row_id, origin in candidates
        if row_id in chosen
    ]
    judged = [reward for row in responses if (reward := reward_of[row.response_id]) is not None]
    counts = _counts(samples, groups=len(prompts)) | {
        "judged": len(judged),
        "without_verdict": len(responses) - len(judged),
        "not_imitated": len(candidates) - len(samples),
    }
    return Published(tables={"samples": samples}, counts=counts, metrics={"reward_sum": sum(judged)})


@stage
def imitate_critiques(
    context: StageContext,
    critiques: list[Critique],
    responses: list[Response],
    prompts: list[Prompt],
    problems: list[Problem],
    model: dict[str, Any],
) -> Published:
    """Make a row of each critique that is one, as the answer to a request for it; too long requests are counted out.

    The policy did not write the critique, so its text is tokenized here, ended, and cut at the limit of responses.
    """
    rollout = context.block(RolloutParams)
    tokenizer = load_tokenizer(str(resolve_model(model, context.home, Path(context.base_dir))))
    response_of = {response.response_id: response for response in responses}
    question_of = {problem.problem_id: problem.question for problem in problems}
    written = [critique for critique in critiques if critique.status == "ok"]
    samples, too_long, cut = [], 0, 0
    for critique in written:
        response = response_of[critique.response_id]
        _, asked = render(tokenizer, critique_request_messages(question_of[response.problem_id], response.text))
        if len(asked) > rollout.max_prompt_tokens:
            too_long += 1
            continue
        said = tokenizer(critique.text.strip(), add_special_tokens=False)["input_ids"]
        cut += len(said) >= rollout.max_response_tokens
        token_ids = ended(said, tokenizer.eos_token_id, rollout.max_response_tokens)
        row_id = make_id("i", context.key, critique.critique_id)
        samples.append(_sample(row_id, response.group_id, "critique", tuple(asked), token_ids, reward=0.0))
    counts = _counts(samples, groups=len(prompts)) | {
        "too_long": too_long,
        "critiques_cut": cut,
        "not_critiques": len(critiques) - len(written),
    }
    return Published(tables={"samples": samples}, counts=counts)


def _sample(
    row_id: str,
    group_id: str,
    origin: Origin,
    prompt_token_ids: tuple[int, ...],
    token_ids: tuple[int, ...],
    *,
    reward: float,
    sampling_logprobs: tuple[float, ...] = (),
) -> TrainingSample:
    return TrainingSample(
        sample_id=row_id,
        group_id=group_id,
        origin=origin,
        prompt_token_ids=prompt_token_ids,
        token_ids=token_ids,
        sampling_logprobs=sampling_logprobs,
        reward=reward,
        advantage=1.0,
        weight=1.0,
    )


def _counts(samples: list[TrainingSample], *, groups: int) -> dict[str, int]:
    trained = {sample.group_id for sample in samples}
    return {"groups": groups, "groups_without_gradient": groups - len(trained), "samples": len(samples)}
