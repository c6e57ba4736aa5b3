"""Which problem is asked when: a pure function of seed, iteration and the problems, so that a resume cannot skip any.

The problems are shuffled anew in each epoch. A slot is a position in the endless sequence of epochs; iteration k of P
prompts takes the P slots from (k-1)P on, and a chunk a contiguous part of them. Where prompts may be replaced, an
iteration takes a multiple of P: the j-th replacement of the prompt of slot s has the slot s + jP, so that no slot is
asked twice, whichever prompts are replaced. A slot that is not needed is passed over.
"""

from collections.abc import Sequence

from cgrpo_core.ids import digest


def chunk_slots(
    iteration: int, prompts_per_iteration: int, chunk: int, chunks: int, slots_per_prompt: int = 1
) -> range:
    """Return the slots of one chunk (0-based) of one iteration (1-based); chunk sizes differ by at most one."""
    first = (iteration - 1) * prompts_per_iteration * slots_per_prompt
    start, stop = (prompts_per_iteration * part // chunks for part in (chunk, chunk + 1))
    return range(first + start, first + stop)


def replacement_slot(slot: int, prompts_per_iteration: int) -> int:
    """Return the slot of the prompt that takes the place of another one's."""
    return slot + prompts_per_iteration


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
