"""The supervised baselines of the paper (arXiv 2506.03106, table 2): which rows are imitated. The loss: sft.py.

    sft            worked solutions of the data, given the question
    raft           the policy's own correct responses (RAFT, arXiv 2304.06767; positive samples only, as 2504.11343)
    refinement ft  correct refinements, given the question alone
    critique ft    the critique, given question and response (CFT, arXiv 2501.17703)
    citl ft        correct responses and correct refinements together (critique in the loop, after arXiv 2411.16579)

Where we differ: the paper's are made once from the base model and trained for epochs; ours go through the same loop as
everything else, so that each iteration samples from the policy that the last one made; one iteration over many prompts
is the offline form. RAFT keeps one best response a prompt; with rewards of 0 and 1 all correct ones are equally good,
and `supervised.keep` says how many stay. Not established: how the paper mixes CITL's two kinds of rows, and which of
its critiques the critique baseline imitates; ours are all rows alike, and those that critique.kind writes.
"""

from collections.abc import Sequence

from cgrpo_core.ids import digest
from cgrpo_core.prompts import Message
from cgrpo_core.rewards import CORRECT_REWARD

CRITIQUE_REQUEST_VERSION = 1

CRITIQUE_REQUEST = (
    "Below you find a problem and an attempt at it. Write a critique of the attempt: say whether its final answer is "
    "correct and what should be mended."
)


def imitated_ids(rows: Sequence[tuple[str, str, float | None]], keep: int | None, seed: int) -> set[str]:
    """Return the ids of the rows that are imitated, of (id, group_id, reward): correct ones, up to `keep` of a group.

    The draw among more correct ones depends on seed and ids alone, not on their order. keep None: all of them.
    """
    groups: dict[str, list[str]] = {}
    for row_id, group_id, reward in rows:
        if reward == CORRECT_REWARD:
            groups.setdefault(group_id, []).append(row_id)
    drawn = (sorted(ids, key=lambda row_id: digest(["imitate", seed, row_id])) for ids in groups.values())
    return {row_id for ids in drawn for row_id in (ids if keep is None else ids[:keep])}


def critique_request_messages(problem: str, response_text: str) -> list[Message]:
    """Return the chat messages that ask for a critique: what comes before the critiques that are imitated.

    Raises ValueError for a blank problem. A response without text is quoted as such.
    """
    if not problem.strip():
        raise ValueError("the problem is blank: there is nothing to criticise")
    parts = (
        CRITIQUE_REQUEST,
        f"Problem:\n{problem.strip()}",
        f"Attempt:\n{response_text.strip() or '(nothing was written)'}",
    )
    return [{"role": "user", "content": "\n\n".join(parts)}]
