"""Advantages of the rows of a group, and the weight of each row in the loss."""

import math
from collections import Counter
from collections.abc import Sequence

from cgrpo_core.params import AdvantageParams
from cgrpo_core.records import Origin


def group_advantages(
    rewards: Sequence[float], group_ids: Sequence[str], params: AdvantageParams, origins: Sequence[Origin] | None = None
) -> list[float]:
    """Return A_j = R_j - mean(group of j) for each row, in float64 (paper, step 6: one mean over the union of origins).

    rewards, group_ids, origins (None: all responses): one a row; rows of a group need not be adjacent. divide_by_std:
    over (unbiased std + epsilon), as GRPO; the paper does not (it would pull hardest where nearly all rows agree).
    leave_one_out: R_j less the mean of the others, (R_j - mean) n / (n - 1) (RLOO, arXiv 2402.14740, eq. 8): no row is
    its own baseline. first_attempt_mean: R_j less the mean of the group's responses, refinements or not (RLTF,
    arXiv 2602.02482); 0 in a group without a response. origin_mean: each origin is a group of its own (ICRL,
    arXiv 2605.15224). The mean is exactly rounded, so no order of the rows changes a bit. A group of equal rewards gets
    exactly 0.0, and so does a group of one row: without another row there is no baseline. There we differ from the
    release, which keeps the raw reward of a lone row. Advantages above 0 are multiplied by positive_scale (R3L, arXiv
    2601.03715). Raises ValueError for a reward that is not finite or lists of different lengths.
    """
    origins = ["response"] * len(rewards) if origins is None else origins
    by_origin = params.baseline == "origin_mean"
    members: dict[tuple[str, str], list[int]] = {}
    for row, (reward, group_id, origin) in enumerate(zip(rewards, group_ids, origins, strict=True)):
        if not math.isfinite(reward):
            raise ValueError(f"row {row} of group {group_id} has the reward {reward}; an unjudged row must be left out")
        members.setdefault((group_id, origin if by_origin else ""), []).append(row)
    advantages = [0.0] * len(rewards)
    for rows in members.values():
        firsts = [origins[row] == "response" for row in rows]
        for row, advantage in zip(rows, _centred([float(rewards[row]) for row in rows], firsts, params), strict=True):
            advantages[row] = advantage * params.positive_scale if advantage > 0 else advantage
    return advantages


def _centred(rewards: list[float], firsts: list[bool], params: AdvantageParams) -> list[float]:
    if all(reward == rewards[0] for reward in rewards):
        return [0.0] * len(rewards)
    if params.baseline == "first_attempt_mean":
        return _less_first_attempts(rewards, firsts)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if params.baseline == "leave_one_out":
        return [value * (len(rewards) / (len(rewards) - 1)) for value in centred]
    if not params.divide_by_std:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + params.epsilon) for value in centred]


def _less_first_attempts(rewards: list[float], firsts: list[bool]) -> list[float]:
    attempts = [reward for reward, first in zip(rewards, firsts, strict=True) if first]
    if not attempts:
        return [0.0] * len(rewards)
    mean = math.fsum(attempts) / len(attempts)
    return [reward - mean for reward in rewards]


def row_weights(origins: Sequence[Origin], group_ids: Sequence[str], params: AdvantageParams) -> list[float]:
    """Return each row's weight within its group; the mean over groups is the loss denominator's, not taken here.

    per_origin_mean: 1/n for each of n responses, 1/k for each of k refinements (paper, step 7: J_init + J_refi; with
    n = 7, k = 1 a refinement weighs seven responses). one_sum: 1/(n+k) for every row (release, up to its constant).
    equal: 1, where the loss divides by all rows or tokens of the step. Raises ValueError for lists of two lengths.
    """
    if params.weights == "equal":
        return [1.0 for _ in zip(origins, group_ids, strict=True)]
    per_origin = params.weights == "per_origin_mean"
    rows = [(group_id, origin if per_origin else None) for group_id, origin in zip(group_ids, origins, strict=True)]
    counts = Counter(rows)
    return [1.0 / counts[row] for row in rows]
