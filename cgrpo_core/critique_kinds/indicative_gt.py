"""Right or wrong, and the ground truth (paper, step 3: c_GT)."""

from cgrpo_core.critique_kinds.indicative import indicative_critique
from cgrpo_core.critiques import RuleKind


def indicative_gt_critique(correct: bool, ground_truth: str) -> str:
    """Return the critique that says right or wrong and names the ground truth. Raises ValueError for a blank one.

    The ground truth is named when the response is right too: else its absence would tell the verdict, and the two texts
    would differ in more than the verdict. (The release does the same.)
    """
    if not ground_truth.strip():
        raise ValueError("the ground truth is blank: there is nothing to name")
    return f"{indicative_critique(correct)} The correct answer is {ground_truth.strip()}."


KIND = RuleKind(
    version=1,
    write=lambda subject: indicative_gt_critique(subject.correct, subject.ground_truth),
    shows_ground_truth=True,
)
