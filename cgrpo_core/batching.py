"""How rows are cut into mini-batches, micro-batches and ranks. Pure arithmetic on lengths and ids; no row is lost.

The loss is a sum over rows with its denominator given from outside (losses.py), so no cut made here changes an update
beyond the order of floating-point additions.
"""

from collections.abc import Hashable, Sequence


def split_micro_batches(lengths: Sequence[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Return row indices a micro-batch, longest rows first; rows * longest (padded tokens) stays within the budget.

    A row longer than the budget gets a micro-batch of its own: dropping or cutting it would change what is learnt.
    Sorting by length keeps padding small; starting with the longest lets memory run out at once or never. Ties keep
    the order of the rows. Raises ValueError for a length or a budget below 1.
    """
    if tokens_per_micro_batch < 1:
        raise ValueError(f"optimizer.tokens_per_micro_batch is {tokens_per_micro_batch}; it must be at least 1")
    if any(length < 1 for length in lengths):
        raise ValueError("a row without tokens cannot be trained on")
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_micro_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def split_mini_batches(group_ids: Sequence[Hashable], mini_batch_prompts: int) -> list[list[int]]:
    """Return row indices a mini-batch (one optimizer step each): whole groups, in order of first appearance.

    The last mini-batch may hold fewer groups. Rows of a group need not be adjacent; they are listed group by group.
    Raises ValueError for a mini_batch_prompts below 1.
    """
    if mini_batch_prompts < 1:
        raise ValueError(f"optimizer.mini_batch_prompts is {mini_batch_prompts}; it must be at least 1")
    groups: dict[Hashable, list[int]] = {}
    for row, group_id in enumerate(group_ids):
        groups.setdefault(group_id, []).append(row)
    members = list(groups.values())
    return [
        [row for group in members[start : start + mini_batch_prompts] for row in group]
        for start in range(0, len(members), mini_batch_prompts)
    ]


def assign_to_ranks(micro_batches: Sequence[list[int]], world_size: int) -> list[list[list[int]]]:
    """Return each rank's micro-batches, the same number for every rank, with empty lists where none is left.

    Every rank must take part in every collective call, hence the padding. Dealt in turn: micro-batches come sorted by
    length, so ranks get near-equal work at each turn. Raises ValueError for a world_size below 1.
    """
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; it must be at least 1")
    turns = -(-len(micro_batches) // world_size)
    padded = [list(batch) for batch in micro_batches] + [[] for _ in range(turns * world_size - len(micro_batches))]
    return [padded[rank::world_size] for rank in range(world_size)]
