"""A rerun: a stage and all that depends on it done again, everything else shared with the parent. Pure.

A salt enters a key and nothing else: a salted stage is run again with the same seeds, so a sampler of ours repeats
itself, and an external model is asked anew. Other seeds are an ingredient of their own: `reseed`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cgrpo_core.errors import UserError
from flows.changes import Change, compare
from flows.derive import last_iteration, place, places, readable, rekeyed, seeds_of, upto
from flows.plan import SECTIONS, compile_plan
from flows.resolve import respecify
from flows.spec import Pipeline, Spec
from flows.spec_errors import nearest
from storage.plans import Plan, StagePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """What is done again: `stage` and all that depends on it, from `iteration` on (None: in every iteration).

    to: the last stage that is wanted; then no policy is learnt anew, and each iteration stands on the parent's policy.
    salt: makes the keys of `stage` new where the settings do not. reseed: the seed of all that is done again.
    """

    stage: str
    iteration: int | None
    to: str | None
    salt: str
    reseed: int | None


@dataclass(slots=True)
class _Progress:
    """What is known while a rerun is compiled: the keys that are new, stages beyond `to`, and what was not applied."""

    fresh: set[str] = field(default_factory=set)
    beyond: set[str] = field(default_factory=set)
    held_back: dict[str, tuple[StagePlan, list[Change]]] = field(default_factory=dict)


def rerun(parent: Plan, spec: Spec, identities: Mapping[str, dict[str, Any]], what: Rerun) -> Plan:
    """Return the plan of doing `what` again. Raises UserError for a stage that is not there and for settings that
    would change a stage before it."""
    spec, first = _within(parent, spec, what)
    after = _unwanted(spec.graph, what)
    there, seeds, seen = places(parent), seeds_of(parent, spec), _Progress()
    touched = _touched(parent.config, spec, identities)

    def amend(stage: StagePlan) -> StagePlan:
        base = there.get(place(stage))
        salt = base.ingredients["salt"] if base else ""
        inputs = {ref.key for refs in stage.inputs.values() for ref in refs}
        named = stage.stage == what.stage
        if stage.stage in after and base is not None:
            seen.beyond.add(base.key)
            return base
        if named or inputs & seen.fresh:
            seed = what.reseed if what.reseed is not None else seeds.new(stage)
            stage = rekeyed(stage, seed=seed, salt=salt)
            if named and base is not None and stage.key == base.key and what.iteration in (None, stage.iteration):
                stage = rekeyed(stage, seed=seed, salt=what.salt)
            if base is None or stage.key != base.key:
                seen.fresh.add(stage.key)
            return stage
        stage = rekeyed(stage, seed=seeds.kept(stage), salt=salt)
        if base is None or stage.key == base.key:
            return stage
        changes = [change for change in compare(base.ingredients, stage.ingredients) if _asked_for(change, touched)]
        if changes:
            seen.held_back[base.key] = (base, changes)
        return base

    kept = upto(parent, first - 1) if first else ()
    plan = compile_plan(spec, identities, amend=amend, kept=kept)
    own = {stage.key for stage in kept}
    wanted = [s for s in plan.stages if s.key in own or (s.key not in seen.beyond and s.stage not in after)]
    plan = replace(plan, stages=tuple(wanted))
    _refuse_held_back(plan, seen, what, first)
    return readable(plan, parent)


def _within(parent: Plan, spec: Spec, what: Rerun) -> tuple[Spec, int]:
    """Return the spec over the iterations that a rerun has, and the first iteration that it touches (0: the setup)."""
    names = {name for section in SECTIONS for name in getattr(spec.graph, section)}
    for word, name in (("--from", what.stage), ("--to", what.to)):
        if name is not None and name not in names:
            raise UserError(f"{word} {name}: the pipeline {spec.pipeline} has no such stage", nearest(name, names))
    found = sorted({stage.iteration or 0 for stage in parent.stages if stage.stage == what.stage})
    if not found:
        raise UserError(f"the run has no stage {what.stage}", "it ends before that stage, or it was never due")
    if what.iteration is not None and what.iteration not in found:
        raise UserError(f"the run has no {what.stage} in iteration {what.iteration}", f"it has it in {_ranges(found)}")
    first = found[0] if what.iteration is None else what.iteration
    if what.to is not None:
        iterations = last_iteration(parent) if what.iteration is None else max(first, 1)
        run = replace(spec.params.run, iterations=iterations)
        spec = spec.model_copy(update={"params": replace(spec.params, run=run)})
    return spec, first


def _unwanted(graph: Pipeline, what: Rerun) -> set[str]:
    """Return the stages that depend on `what.stage` but are not needed for `what.to`."""
    reads = {
        name: {ref.removeprefix("explore.").split(".")[0] for ref in stage.reads.values()}
        for section in SECTIONS
        for name, stage in getattr(graph, section).items()
    }
    following = {what.stage}
    for name, sources in reads.items():  # a stage stands after those that it reads
        if sources & following:
            following.add(name)
    if what.to is None:
        return set()
    if what.to not in following:
        raise UserError(
            f"--to {what.to}: it does not depend on {what.stage}",
            f"what does: {', '.join(name for name in reads if name in following)}",
        )
    needed = {what.to}
    for name in reversed(reads):
        if name in needed:
            needed |= reads[name]
    return following - needed


def _touched(config: Mapping[str, Any], spec: Spec, identities: Mapping[str, dict[str, Any]]) -> set[str]:
    """Return the parameters that the settings change, and `engine` or `content` if they change an engine or input.

    Compared with what the run was compiled from, read by this program: a parameter that is new in it was not set.
    """
    frozen = respecify(config)
    empty: dict[str, Any] = {"inputs": {}}
    changes = compare({**empty, "params": asdict(frozen.params)}, {**empty, "params": asdict(spec.params)})
    touched = {change.name for change in changes}
    if spec.engines != frozen.engines:
        touched.add("engine")
    if any(leaf["identity"] != identities[name] for name, leaf in config["inputs"].items()):
        touched |= {"content", "engine"}
    return touched


def _asked_for(change: Change, touched: set[str]) -> bool:
    return change.name in touched if change.kind == "params" else change.kind in touched


def _refuse_held_back(plan: Plan, seen: _Progress, what: Rerun, first: int) -> None:
    read = {ref.key for stage in plan.stages for refs in stage.inputs.values() for ref in refs}
    own = {stage.key for stage in plan.stages if (stage.iteration or 0) >= max(first, 1)}
    for key, (stage, changes) in seen.held_back.items():
        if key in read | own:
            raise UserError(
                f"{changes[0].text()}: that is read by {stage.label}, which does not follow from {what.stage}",
                f"--from {stage.stage} does that stage again too; cgrpo fork changes what comes after an iteration",
            )


def _ranges(numbers: list[int]) -> str:
    """Return sorted numbers as `1 to 3, 6`."""
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in _runs_of(numbers))


def _runs_of(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = previous = numbers[0]
    for number in [*numbers[1:], numbers[-1] + 2]:
        if number != previous + 1:
            yield start, previous
            start = number
        previous = number
