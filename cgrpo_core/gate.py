"""Which groups are refined at all."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from cgrpo_core.records import Verdict
from cgrpo_core.rewards import is_judged

Gate = Literal["zero_correct", "low_reward", "all", "never"]


def unjudged_groups(verdicts_by_group: Mapping[str, Sequence[Verdict]]) -> set[str]:
    """Return the groups none of whose responses was judged (all timeout or error), for the caller to count."""
    return {
        group_id
        for group_id, verdicts in verdicts_by_group.items()
        if not any(is_judged(verdict.status) for verdict in verdicts)
    }


def groups_to_refine(
    verdicts_by_group: Mapping[str, Sequence[Verdict]], gate: Gate, reward_below: float = 1.0
) -> set[str]:
    """Return the ids of the groups whose responses get critiques and refinements.

    zero_correct: no response was judged correct (paper v6, step 4). low_reward: the mean reward of those that were
    judged is below `reward_below` (GOLF, arXiv 2603.04597). all: every group (release). never: none (GRPO).
    A group without any verdict is never refined: no critique can say right or wrong of it, and that its problem is
    unsolved is not known. In a group that was judged in part, the responses that were judged decide; those that were
    not have no critique to be refined with.
    """
    if gate == "never":
        return set()
    judged = set(verdicts_by_group) - unjudged_groups(verdicts_by_group)
    if gate == "all":
        return judged
    if gate == "low_reward":
        return {group_id for group_id in judged if _mean_reward(verdicts_by_group[group_id]) < reward_below}
    return {group_id for group_id in judged if not any(verdict.correct for verdict in verdicts_by_group[group_id])}


def _mean_reward(verdicts: Sequence[Verdict]) -> float:
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    return math.fsum(rewards) / len(rewards)
