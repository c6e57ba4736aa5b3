"""Critiques that need no model: the verdict in words, without or with the ground truth (paper, step 3: c_I, c_GT)."""

from collections.abc import Callable, Mapping
from typing import Literal

CritiqueKind = Literal["indicative", "indicative_gt"]

CRITIQUE_VERSIONS: dict[CritiqueKind, int] = {"indicative": 1, "indicative_gt": 1}

# "Final answer", because that is all that was checked: right steps to a wrong end and wrong steps to a right one exist.
RIGHT = "The final answer of this attempt was checked and is correct."
WRONG = "The final answer of this attempt was checked and is wrong."


def indicative_critique(verdict_correct: bool) -> str:
    """Return the critique that says right or wrong and no more."""
    return RIGHT if verdict_correct else WRONG


def indicative_gt_critique(correct: bool, ground_truth: str) -> str:
    """Return the critique that says right or wrong and names the ground truth. Raises ValueError for a blank one.

    The ground truth is named when the response is right too: else its absence would tell the verdict, and the two texts
    would differ in more than the verdict. (The release does the same.)
    """
    if not ground_truth.strip():
        raise ValueError("the ground truth is blank: there is nothing to name")
    return f"{indicative_critique(correct)} The correct answer is {ground_truth.strip()}."


# The seam for critiques that a model writes (cot, self): those kinds are asked of an engine and are not in this table.
CRITIQUE_KINDS: Mapping[CritiqueKind, Callable[[bool, str], str]] = {
    "indicative": lambda correct, ground_truth: indicative_critique(correct),
    "indicative_gt": indicative_gt_critique,
}
