"""Which refinements join the training rows of their group, and which responses make room for them."""

from collections.abc import Sequence
from typing import Literal

from cgrpo_core.ids import digest
from cgrpo_core.params import SelectParams
from cgrpo_core.records import SelectionReason
from cgrpo_core.rewards import CORRECT_REWARD

Placement = Literal["add", "replace_wrong", "replace_first"]


def select_refinements(
    refinements_of_group: Sequence[tuple[str, float | None]], params: SelectParams, seed: int
) -> list[tuple[str, SelectionReason]]:
    """Return up to `params.keep` (refinement_id, reason) of one group's (refinement_id, reward), chosen ones first.

    correct: correct ones first, else random (paper, step 5); the draw, among several correct ones too, depends on seed
    and ids alone, not on the order given. random: drawn whatever their reward (the paper's ablation). first_best: those
    of reward 1 in the order given, then the highest (release: always the first, keep = 1). A reward of None (not
    judged) is never selected: the list may be empty.
    """
    judged = [(refinement_id, reward) for refinement_id, reward in refinements_of_group if reward is not None]
    if params.prefer == "first_best":
        ranked = sorted(judged, key=lambda pair: (pair[1] != CORRECT_REWARD, -pair[1]))
        return [(refinement_id, "first_best") for refinement_id, _ in ranked[: params.keep]]
    by_reward = params.prefer == "correct"
    drawn = sorted(
        judged, key=lambda pair: (by_reward and pair[1] != CORRECT_REWARD, digest(["select", seed, pair[0]]))
    )
    return [
        (refinement_id, "correct" if by_reward and reward == CORRECT_REWARD else "random")
        for refinement_id, reward in drawn[: params.keep]
    ]


def place(responses: Sequence[tuple[str, float | None]], selected: int, placement: Placement) -> list[str]:
    """Return the ids of the responses that stay, in order, given (response_id, reward) and the number selected.

    add: all (paper: n + k rows). replace_wrong: each selected refinement takes the place of a wrong response, first
    ones first, never of a correct one; with too few wrong ones the group grows. replace_first: the first responses
    leave, whatever their reward (release: row 0, even if it was the only correct one). A response that was not judged
    (reward None) has nothing to be trained with and never stays; a replacement takes its place before any other.
    """
    judged = [(response_id, reward) for response_id, reward in responses if reward is not None]
    leaving = max(0, selected - (len(responses) - len(judged)))
    if placement == "replace_first":
        return [response_id for response_id, _ in judged[leaving:]]
    wrong = [response_id for response_id, reward in judged if reward != CORRECT_REWARD]
    gone = set(wrong[:leaving]) if placement == "replace_wrong" else set()
    return [response_id for response_id, _ in judged if response_id not in gone]
