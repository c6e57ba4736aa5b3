"""LUFFY (arXiv 2504.14945): a worked solution of the data joins the group, under the shaping of critique_grpo.py.

    A_j = R_j - mean(R over responses and solution),   l_t = -A f(p_t) on its tokens,   f(p) = p / (p + gamma)

The baseline is the union's (section 3.1), f the paper's eq. 7 with gamma 0.1. The solution's reward is 1: the data set
says that it is right, and a verifier that cannot read its format would have it unlearnt. Where we differ: the paper's
solutions are whole reasoning traces of a stronger model, cut at its token limit and always ended; one that is cut here
is not ended, because that would teach to stop half-way.
"""

from collections.abc import Sequence

SOLUTION_REWARD = 1.0


def ended(token_ids: Sequence[int], end_id: int, limit: int) -> tuple[int, ...]:
    """Return a solution's tokens with the end-of-sequence token, or its first `limit` tokens if both do not fit."""
    return (*token_ids, end_id) if len(token_ids) < limit else tuple(token_ids[:limit])
