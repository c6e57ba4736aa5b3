"""Runs that go on from another run: planned, shown, frozen with their parent, and carried out like any run."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from flows.fit import estimate_memory, keep_estimate
from flows.fork import fork
from flows.leaves import identities
from flows.plan import used_inputs
from flows.rerun import Rerun, rerun
from flows.resolve import respecify
from flows.spec import Spec
from storage.artifacts import Store
from storage.plans import Plan
from storage.runs import Run, create_run, open_run, read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A plan that goes on from a run, not frozen yet. options: what was asked for, as typed. notes: what else a user
    should know before it runs."""

    parent: Run
    parent_plan: Plan
    plan: Plan
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def plan_fork(home: Path, reference: str, sets: list[str]) -> Derived:
    """Return the plan of a fork of RUN@ITERATION. Raises UserError for one that would change nothing."""
    name, at, iteration = reference.partition("@")
    if not at or not iteration.isdigit():
        raise UserError(f"{reference!r} is not RUN@ITERATION", f"write it as {name or 'RUN'}@12")
    parent = open_run(home, name)
    before = read_plan(home, parent.name)
    spec = respecify(before.config, sets)
    plan = fork(before, spec, leaf_identities(spec, before.config), int(iteration))
    if not sets and plan.stages == before.stages:
        raise UserError(
            f"nothing in it would differ from {parent.name}",
            f"say what is to differ, as --set loss.shaping.gamma=0.3; or go on with it: cgrpo resume {parent.name}",
        )
    options = {"fork": parent.name, "at": int(iteration), "sets": sets}
    notes = _notes(before.config["params"]["run"], plan.config["params"]["run"], int(iteration))
    return Derived(parent=parent, parent_plan=before, plan=plan, options=options, notes=notes)


def plan_rerun(
    home: Path, name: str, stage: str, *, iteration: int | None, to: str | None, sets: list[str], reseed: int | None
) -> Derived:
    """Return the plan of doing a stage of a run, and what depends on it, again."""
    parent = open_run(home, name)
    before = read_plan(home, parent.name)
    spec = respecify(before.config, sets)
    what = Rerun(stage=stage, iteration=iteration, to=to, salt=secrets.token_hex(8), reseed=reseed)
    plan = rerun(before, spec, leaf_identities(spec, before.config), what)
    _check_at_hand(Store(home), parent, before, plan)
    options = {"rerun": parent.name, "from": stage, "iteration": iteration, "to": to, "sets": sets, "reseed": reseed}
    return Derived(parent=parent, parent_plan=before, plan=plan, options=options)


def freeze(home: Path, derived: Derived, name: str | None) -> Run:
    """Make the run. Raises RunExists, RunNameInvalid."""
    run = create_run(home, name=name, plan=derived.plan, options=derived.options, parent=derived.parent.name)
    keep_estimate(home, run.name, estimate_memory(home, derived.plan))
    return run


def leaf_identities(spec: Spec, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what identifies the inputs: as frozen where the declaration is the same, found anew where it is not."""
    used, before, found = used_inputs(spec), respecify(config), {}
    for name, leaf in spec.inputs.items():
        identity = config["inputs"].get(name, {}).get("identity")
        if identity and leaf == before.inputs[name] and (identity["digest"] != "unused" or name not in used):
            found[name] = identity
    return found if len(found) == len(spec.inputs) else {**identities(spec), **found}


def _notes(old: dict[str, Any], new: dict[str, Any], at: int) -> tuple[str, ...]:
    """Say when a fork takes the problems up elsewhere in their order: slots count from the first iteration."""
    changed = [name for name in ("prompts_per_iteration", "seed") if old[name] != new[name]]
    if not at or not changed:
        return ()
    names = " and ".join(f"run.{name}" for name in changed)
    return (f"{names} differ: problems of the epoch that iteration {at} is in may be asked twice or not at all",)


def _check_at_hand(store: Store, parent: Run, before: Plan, plan: Plan) -> None:
    """Raise UserError if a stage reads what only the parent can still make: a rerun that ends early has no updates."""
    own = {stage.key for stage in plan.stages}
    labels = {stage.key: stage.label for stage in before.stages}
    for stage in plan.stages:
        for ref in (ref for refs in stage.inputs.values() for ref in refs):
            if ref.key not in own and store.find(ref.key) is None:
                raise UserError(
                    f"{stage.label} reads {labels.get(ref.key, ref.key[:12])} of {parent.name}, which is not published",
                    f"cgrpo resume {parent.name} first, or name an iteration that is complete with --iteration",
                )
