"""Rewards: what a verdict is worth in training, and what no verdict is not."""

from cgrpo_core.records import VerdictStatus

CORRECT_REWARD = 1.0
WRONG_REWARD = 0.0


def is_judged(status: VerdictStatus) -> bool:
    """Return whether the verifier came to a verdict. A timeout or an error of its own says nothing about the answer."""
    return status in ("ok", "unparsable")


def reward_of(correct: bool, status: VerdictStatus) -> float | None:
    """Return 1.0 or 0.0, or None when nothing was judged. No format reward (paper, step 2).

    An answer that cannot be parsed is a wrong answer: that is the policy's doing. A verifier that ran out of time or
    failed is not, so such a row has no reward and is left out, counted. Raises ValueError for correct without `ok`.
    """
    if correct and status != "ok":
        raise ValueError(f"a verdict cannot be correct with status {status!r}")
    if not is_judged(status):
        return None
    return CORRECT_REWARD if correct else WRONG_REWARD
