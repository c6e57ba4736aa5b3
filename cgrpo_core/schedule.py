"""Which problem is asked when: a pure function of seed, iteration and the problems, so that a resume cannot skip any.

The problems are shuffled anew in each epoch. A slot is a position in the endless sequence of epochs; iteration k of P
prompts takes the slots (k-1)P .. kP-1, and a chunk a contiguous part of them.
"""

from collections.abc import Sequence

from cgrpo_core.ids import digest


def chunk_slots(iteration: int, prompts_per_iteration: int, chunk: int, chunks: int) -> range:
    """Return the slots of one chunk (0-based) of one iteration (1-based); chunk sizes differ by at most one."""
    first = (iteration - 1) * prompts_per_iteration
    start, stop = (prompts_per_iteration * part // chunks for part in (chunk, chunk + 1))
    return range(first + start, first + stop)


def problems_of_slots(problem_ids: Sequence[str], slots: Sequence[int], seed: int) -> list[str]:
    """Return the problem id of each slot. Their order does not matter. Raises ValueError without any."""
    if not problem_ids:
        raise ValueError("there are no problems to schedule")
    orders: dict[int, list[str]] = {}
    chosen = []
    for slot in slots:
        epoch, position = divmod(slot, len(problem_ids))
        if epoch not in orders:
            orders[epoch] = sorted(problem_ids, key=lambda problem_id: digest([seed, "epoch", epoch, problem_id]))
        chosen.append(orders[epoch][position])
    return chosen
