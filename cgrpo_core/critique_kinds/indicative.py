"""Right or wrong, and no more (paper, step 3: c_I)."""

from cgrpo_core.critiques import RuleKind

# "Final answer", because that is all that was checked: right steps to a wrong end and wrong steps to a right one exist.
RIGHT = "The final answer of this attempt was checked and is correct."
WRONG = "The final answer of this attempt was checked and is wrong."


def indicative_critique(correct: bool) -> str:
    """Return the critique that says right or wrong and no more."""
    return RIGHT if correct else WRONG


KIND = RuleKind(version=1, write=lambda subject: indicative_critique(subject.correct), shows_ground_truth=False)
