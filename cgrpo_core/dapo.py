"""What DAPO (arXiv 2503.14476) adds besides its clip and its token mean: groups that teach nothing, and length.

Dynamic sampling (section 3.2, eq. 11): a group whose rewards are all equal has no advantage, so it is left out of the
batch and another problem is sampled in its place. Overlong reward shaping (section 3.4, eq. 13), with L the token limit
and C the buffer before it:

    penalty(y) = 0                    |y| <= L - C
                 (L - C - |y|) / C    L - C < |y| <= L
                 -1                   |y| > L

Where we differ: the paper samples until the batch is full; ours replaces each group at most as often as the graph has
passes, and what then is still missing is counted. Rewards are 1 and 0 here, 1 and -1 there, so that the paper's penalty
of 1 is an `overlong_penalty` of 0.5.
"""

from collections.abc import Iterable


def teaches(rewards: Iterable[float | None]) -> bool:
    """Return whether a group has rewards that differ; None, what was not judged, is no reward."""
    return len({reward for reward in rewards if reward is not None}) > 1


def overlong_penalty(tokens: int, *, limit: int, share: float, largest: float) -> float:
    """Return the penalty, 0 or below, of a completion of so many tokens; the buffer is `share` of the limit."""
    buffer = share * limit
    excess = min(max(tokens - (limit - buffer), 0.0), buffer)
    return -largest * (excess / buffer) if excess > 0 else 0.0
