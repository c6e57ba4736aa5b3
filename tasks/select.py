"""Which refinements join the training rows of their group."""

from collections import Counter

from cgrpo_core.ids import derive_seed
from cgrpo_core.params import SelectParams
from cgrpo_core.records import Refinement, SelectedRefinement, Verdict
from cgrpo_core.selection import select_refinements as choose
from tasks.stage import Published, StageContext, stage


@stage
def select_refinements(context: StageContext, refinements: list[Refinement], verdicts: list[Verdict]) -> Published:
    """Keep k refinements of each group: correct ones first, else random ones (paper, step 5)."""
    params = context.block(SelectParams)
    reward_of = {verdict.subject_id: verdict.reward for verdict in verdicts}
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for refinement in refinements:
        groups.setdefault(refinement.group_id, []).append(
            (refinement.refinement_id, reward_of[refinement.refinement_id])
        )
    seed = derive_seed(context.seed, "select", context.iteration)
    selection = [
        SelectedRefinement(group_id=group_id, refinement_id=refinement_id, reason=reason)
        for group_id, members in groups.items()
        for refinement_id, reason in choose(members, params, seed)
    ]
    reasons = Counter(f"reason_{row.reason}" for row in selection)
    without = sum(reward is None for members in groups.values() for _, reward in members)
    return Published(
        tables={"selection": selection}, counts={"selected": len(selection), "without_verdict": without, **reasons}
    )
