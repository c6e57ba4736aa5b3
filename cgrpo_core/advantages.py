"""Advantages of the rows of a group, and the weight of each row in the loss."""

import math
from collections import Counter
from collections.abc import Sequence

from cgrpo_core.params import AdvantageParams
from cgrpo_core.records import Origin


def group_advantages(rewards: Sequence[float], group_ids: Sequence[str], params: AdvantageParams) -> list[float]:
    """Return A_j = R_j - mean(group of j) for each row, in float64 (paper, step 6: one mean over the union of origins).

    rewards, group_ids: one a row; rows of a group need not be adjacent. divide_by_std: over (unbiased std + epsilon),
    as GRPO; the paper does not (it would pull hardest where nearly all rows agree). leave_one_out: R_j less the mean
    of the others, (R_j - mean) n / (n - 1) (RLOO, arXiv 2402.14740, eq. 8): no row is its own baseline. The mean is
    exactly rounded, so no order of the rows changes a bit. A group of equal rewards gets exactly 0.0, and so does a
    group of one row: without another row there is no baseline. There we differ from the release, which keeps the raw
    reward of a lone row. Raises ValueError for a reward that is not finite or lists of different lengths.
    """
    members: dict[str, list[int]] = {}
    for row, (reward, group_id) in enumerate(zip(rewards, group_ids, strict=True)):
        if not math.isfinite(reward):
            raise ValueError(f"row {row} of group {group_id} has the reward {reward}; an unjudged row must be left out")
        members.setdefault(group_id, []).append(row)
    advantages = [0.0] * len(rewards)
    for rows in members.values():
        for row, advantage in zip(rows, _centred([float(rewards[row]) for row in rows], params), strict=True):
            advantages[row] = advantage
    return advantages


def _centred(rewards: list[float], params: AdvantageParams) -> list[float]:
    if all(reward == rewards[0] for reward in rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if params.baseline == "leave_one_out":
        return [value * (len(rewards) / (len(rewards) - 1)) for value in centred]
    if not params.divide_by_std:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards) - 1))
    return [value / (std + params.epsilon) for value in centred]


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
