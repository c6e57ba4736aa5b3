"""What a plan would run and what it would reuse, and why: by comparison with an earlier run. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from flows.changes import compare, own
from flows.derive import places
from storage.plans import Plan, StagePlan

Action = Literal["run", "reuse"]
NEW, UNPUBLISHED = "new", "not published yet"
REBUILT = "its weights were dropped: a replay brings them back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a stage would run, and why. changed_here: what differs in the stage itself, not upstream of it."""

    stage: StagePlan
    action: Action
    why: str
    changed_here: tuple[str, ...] = ()


def decide(
    plan: Plan, published: Collection[str], reference: Plan | None, without_weights: Collection[str] = ()
) -> list[Decision]:
    """Return a decision for each stage, in plan order.

    published: keys in the store. reference: the plan to compare with. without_weights: keys of policies whose weights
    are gone; that matters where a stage that would run reads the policy.
    """
    before = places(reference) if reference else {}
    read = {
        ref.key for stage in plan.stages if stage.key not in published for refs in stage.inputs.values() for ref in refs
    }
    decisions = []
    for stage in plan.stages:
        if stage.key in published:
            rebuilt = stage.key in without_weights and stage.key in read
            decisions.append(Decision(stage=stage, action="reuse", why=REBUILT if rebuilt else ""))
        else:
            decisions.append(_why_run(stage, before.get((stage.stage, stage.iteration, stage.chunk))))
    return decisions


def _why_run(stage: StagePlan, base: StagePlan | None) -> Decision:
    if base is None:
        return Decision(stage=stage, action="run", why=NEW)
    changes = compare(base.ingredients, stage.ingredients)
    here = tuple(change.text() for change in own(changes))
    inputs = ", ".join(change.name for change in changes)  # without own changes, all of them are inputs
    why = "; ".join(here) or (f"input {inputs} changed" if inputs else UNPUBLISHED)
    return Decision(stage=stage, action="run", why=why, changed_here=here)


def nearest_plan(plan: Plan, others: Iterable[tuple[str, Plan]]) -> tuple[str, Plan] | None:
    """Return the one of other runs (name, plan; newest first) that shares most stages with the plan."""
    keys = {stage.key for stage in plan.stages}
    best, shared = None, -1
    for name, other in others:
        common = sum(stage.key in keys for stage in other.stages)
        if common > shared:
            best, shared = (name, other), common
    return best
