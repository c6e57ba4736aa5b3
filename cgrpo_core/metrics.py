"""What an iteration is summed up in. A figure without anything to average over is absent, never NaN or 0."""

import math
from collections.abc import Iterable, Mapping, Sequence

from cgrpo_core.rewards import CORRECT_REWARD

RewardsByGroup = Mapping[str, Sequence[float | None]]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k samples is correct (arXiv 2107.03374, eq. 1).

    1 - C(samples - correct, k) / C(samples, k). Raises ValueError unless 0 <= correct <= samples and 1 <= k <= samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {correct} correct among {samples} samples is not defined")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, or None when none is."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None


def group_stats(rewards_by_group: RewardsByGroup) -> dict[str, float]:
    """Return how many groups there are, and of what kind: those of equal rewards give no gradient.

    equal rewards, zero correct and all correct look at judged rows (reward not None); groups without any are unjudged.
    """
    judged = [[reward for reward in rewards if reward is not None] for rewards in rewards_by_group.values()]
    return {
        "groups": float(len(judged)),
        "groups_unjudged": float(sum(not rewards for rewards in judged)),
        "groups_equal_rewards": float(sum(len(set(rewards)) == 1 for rewards in judged)),
        "groups_zero_correct": float(sum(bool(rewards) and CORRECT_REWARD not in rewards for rewards in judged)),
        "groups_all_correct": float(sum(set(rewards) == {CORRECT_REWARD} for rewards in judged)),
    }


def iteration_summary(
    response_rewards: RewardsByGroup, refinement_rewards: RewardsByGroup, *, selected: int
) -> dict[str, float]:
    """Return the figures of one iteration's table.

    Both arguments map group_id to one reward a row (None: not judged); groups that were not refined are absent from
    `refinement_rewards`. groups_repaired: no response was correct, a refinement was.
    """
    responses = [reward for rewards in response_rewards.values() for reward in rewards]
    refinements = [reward for rewards in refinement_rewards.values() for reward in rewards]
    repaired = sum(
        CORRECT_REWARD in rewards and CORRECT_REWARD not in response_rewards.get(group_id, ())
        for group_id, rewards in refinement_rewards.items()
    )
    averages = {"reward_mean": mean(responses), "refinement_reward_mean": mean(refinements)}
    return {
        **group_stats(response_rewards),
        "responses": float(len(responses)),
        "responses_unjudged": float(sum(reward is None for reward in responses)),
        "groups_refined": float(len(refinement_rewards)),
        "groups_repaired": float(repaired),
        "refinements": float(len(refinements)),
        "refinements_unjudged": float(sum(reward is None for reward in refinements)),
        "refinements_selected": float(selected),
        **{name: value for name, value in averages.items() if value is not None},
    }
