"""A fork: the first iterations of a run as they are, and from there on other settings. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cgrpo_core.errors import UserError
from flows.derive import last_iteration, place, places, readable, rekeyed, seeds_of, upto
from flows.plan import compile_plan, gather
from flows.spec import Spec
from storage.plans import Plan, StagePlan


def fork(parent: Plan, spec: Spec, identities: Mapping[str, dict[str, Any]], at: int) -> Plan:
    """Return the plan that keeps iterations 1 to `at` of the parent and then goes on as `spec` says."""
    last = last_iteration(parent)
    if not 0 <= at <= last:
        raise UserError(f"there is no iteration {at}: the run has {last}", f"fork at 0 to {last}")
    if spec.params.run.iterations <= at:
        raise UserError(
            f"run.iterations = {spec.params.run.iterations} leaves nothing to do after iteration {at}",
            f"--set run.iterations={at + 1} or more, or fork earlier",
        )
    kept = upto(parent, at)
    offered = gather([stage for stage in kept if stage.iteration == at])
    if at and any(carry.next not in offered for carry in spec.graph.carry.values()):
        raise UserError(
            f"iteration {at} of the run makes no policy to go on from", "fork the run that it was rerun from"
        )
    seeds = seeds_of(parent, spec)
    there = places(parent)

    def amend(stage: StagePlan) -> StagePlan:
        base = there.get(place(stage))
        return rekeyed(stage, seed=seeds.new(stage), salt=base.ingredients["salt"] if base else "")

    plan = compile_plan(spec, identities, amend=amend, kept=kept)
    return readable(_pruned(plan, {stage.key for stage in kept}), parent)


def _pruned(plan: Plan, kept: set[str]) -> Plan:
    """Return the plan without new setup stages that nothing in it reads: policy 0 is not evaluated for a fork."""
    read = {ref.key for stage in plan.stages for refs in stage.inputs.values() for ref in refs}
    stages = [s for s in plan.stages if s.section != "setup" or s.key in kept or s.key in read]
    return replace(plan, stages=tuple(stages))
