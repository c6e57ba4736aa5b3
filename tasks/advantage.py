"""From rewards to training samples: one baseline over the union of a group's responses and selected refinements."""

from collections.abc import Sequence
from typing import TypeVar

from cgrpo_core.advantages import group_advantages, row_weights
from cgrpo_core.dapo import overlong_penalty, teaches
from cgrpo_core.luffy import SOLUTION_REWARD
from cgrpo_core.metrics import iteration_summary
from cgrpo_core.params import AdvantageParams, RolloutParams, SelectParams
from cgrpo_core.records import (
    Origin,
    Prompt,
    Refinement,
    Response,
    SelectedRefinement,
    Solution,
    TrainingSample,
    Verdict,
)
from cgrpo_core.restarts import given_tokens
from cgrpo_core.selection import place
from tasks.stage import Published, StageContext, stage

Row = tuple[Response | Refinement | Solution, Origin]
Value = TypeVar("Value", int, float)


@stage
def build_training_samples(
    context: StageContext,
    prompts: list[Prompt],
    responses: list[Response],
    verdicts: list[Verdict],
    refinements: Sequence[Refinement] = (),
    refinement_verdicts: Sequence[Verdict] = (),
    selection: Sequence[SelectedRefinement] = (),
    solutions: Sequence[Solution] = (),
) -> Published:
    """Make each group's rows: the responses that stay, the refinements that were selected, the solution.

    A refinement's row has the question's prompt, not the one it was sampled from (paper, step 7). A penalty for length
    is added to the reward before the baseline is taken; the reward itself stays the verifier's.
    """
    params = context.block(AdvantageParams)
    reward_of = {verdict.subject_id: verdict.reward for verdict in [*verdicts, *refinement_verdicts]}
    reward_of |= {solution.solution_id: SOLUTION_REWARD for solution in solutions}
    rows = _rows(context.block(SelectParams), responses, refinements, selection, reward_of)
    rows = _kept_rows([*rows, *((solution, "solution") for solution in solutions)], reward_of, params)
    group_ids = [row.group_id for row, _ in rows]
    rewards = [float(reward_of[_row_id(row)] or 0.0) for row, _ in rows]
    penalties = [_penalty(context, row) for row, _ in rows]
    origins = [origin for _, origin in rows]
    learnt_from = [sum(pair) for pair in zip(rewards, penalties, strict=True)]
    advantages = group_advantages(learnt_from, group_ids, params, origins)
    weights = row_weights(origins, group_ids, params)
    prompt_of = {prompt.prompt_id: prompt for prompt in prompts}
    sampled = [row for row, _ in rows if not isinstance(row, Solution)]
    given = given_tokens(sampled, responses, params.restarts)
    samples = [
        TrainingSample(
            sample_id=_row_id(row),
            group_id=row.group_id,
            origin=origin,
            prompt_token_ids=prompt_of[row.group_id].token_ids + given.get(_row_id(row), ()),
            token_ids=_trained(row.token_ids, row, given),
            sampling_logprobs=() if isinstance(row, Solution) else _trained(row.sampling_logprobs, row, given),
            reward=reward,
            advantage=advantage,
            weight=weight,
            context_token_ids=row.prompt_token_ids if isinstance(row, Refinement) else (),
            penalty=penalty,
        )
        for (row, origin), reward, advantage, weight, penalty in zip(
            rows, rewards, advantages, weights, penalties, strict=True
        )
    ]
    counts, metrics = _figures(responses, refinements, selection, reward_of, samples)
    return Published(tables={"samples": samples}, counts=counts, metrics=metrics)


def _kept_rows(rows: list[Row], reward_of: dict[str, float | None], params: AdvantageParams) -> list[Row]:
    """Return the rows without those of groups of equal rewards, if these are to be dropped."""
    if params.equal_rewards == "keep":
        return rows
    rewards: dict[str, list[float | None]] = {}
    for row, _ in rows:
        rewards.setdefault(row.group_id, []).append(reward_of[_row_id(row)])
    return [(row, origin) for row, origin in rows if teaches(rewards[row.group_id])]


def _penalty(context: StageContext, row: Response | Refinement | Solution) -> float:
    """Return the penalty for the length of what was sampled."""
    params = context.block(AdvantageParams)
    if params.overlong_share is None or isinstance(row, Solution):
        return 0.0
    limit = context.block(RolloutParams).max_response_tokens
    return overlong_penalty(
        len(row.token_ids), limit=limit, share=params.overlong_share, largest=params.overlong_penalty
    )


def _rows(
    params: SelectParams,
    responses: Sequence[Response],
    refinements: Sequence[Refinement],
    selection: Sequence[SelectedRefinement],
    reward_of: dict[str, float | None],
) -> list[Row]:
    refinement_of = {refinement.refinement_id: refinement for refinement in refinements}
    selected: dict[str, list[Refinement]] = {}
    for chosen in selection:
        selected.setdefault(chosen.group_id, []).append(refinement_of[chosen.refinement_id])
    members: dict[str, list[Response]] = {}
    for response in responses:
        members.setdefault(response.group_id, []).append(response)
    rows: list[Row] = []
    for group_id, group in members.items():
        joining = selected.get(group_id, [])
        candidates = [(response.response_id, reward_of[response.response_id]) for response in group]
        staying = set(place(candidates, len(joining), params.placement))
        rows += [(response, "response") for response in group if response.response_id in staying]
        rows += [(refinement, "refinement") for refinement in joining]
    return rows


def _trained(
    values: tuple[Value, ...], row: Response | Refinement | Solution, given: dict[str, tuple[int, ...]]
) -> tuple[Value, ...]:
    """Return those of a row's tokens, or of their log-probs, that are trained; only responses have others."""
    return values[len(given[row.response_id]) :] if isinstance(row, Response) else values


def _row_id(row: Response | Refinement | Solution) -> str:
    if isinstance(row, Solution):
        return row.solution_id
    return row.response_id if isinstance(row, Response) else row.refinement_id


def _figures(
    responses: Sequence[Response],
    refinements: Sequence[Refinement],
    selection: Sequence[SelectedRefinement],
    reward_of: dict[str, float | None],
    samples: list[TrainingSample],
) -> tuple[dict[str, int], dict[str, float]]:
    response_rewards: dict[str, list[float | None]] = {}
    for response in responses:
        response_rewards.setdefault(response.group_id, []).append(reward_of[response.response_id])
    refinement_rewards: dict[str, list[float | None]] = {}
    for refinement in refinements:
        refinement_rewards.setdefault(refinement.group_id, []).append(reward_of[refinement.refinement_id])
    summary = iteration_summary(response_rewards, refinement_rewards, selected=len(selection))
    judged = [reward for rewards in response_rewards.values() for reward in rewards if reward is not None]
    sampled_groups = {sample.group_id for sample in samples}
    trained_groups = {sample.group_id for sample in samples if sample.advantage != 0.0}
    counts = {
        "groups": len(response_rewards),
        "groups_dropped": len(response_rewards) - len(sampled_groups),
        "groups_without_gradient": len(response_rewards) - len(trained_groups),
        "samples": len(samples),
        "without_verdict": len(responses) - len(judged),
        "judged": len(judged),
        "penalised": sum(sample.penalty < 0 for sample in samples),
    }
    return counts, {**summary, "reward_sum": sum(judged)}
