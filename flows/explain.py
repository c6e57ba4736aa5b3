"""Why a stage has the key that it has; with two runs, where they first part."""

from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from flows.changes import Change, by_key, compare, first_cause, own
from flows.report import show_table
from flows.spec_errors import nearest
from flows.terminal import dump_json, say
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from storage.runs import open_run, read_plan


def explain(home: Path, run: str, reference: str, other: str | None, *, as_json: bool) -> None:
    """Print the ingredients of a stage's key, or what differs from the same stage of another run, and the cause."""
    name = open_run(home, run).name
    plan = read_plan(home, name)
    stage = find_stage(plan, name, reference)
    if other is None:
        _print_one(home, name, plan, stage, as_json=as_json)
    else:
        name2 = open_run(home, other).name
        plan2 = read_plan(home, name2)
        _print_two((name, plan, stage), (name2, plan2, find_stage(plan2, name2, reference)), as_json=as_json)


def find_stage(plan: Plan, run: str, reference: str) -> StagePlan:
    """Return the stage that STAGE, STAGE@ITERATION or STAGE@ITERATION.CHUNK names; the first one, if it says no more.

    Raises UserError for one that the plan does not have.
    """
    name, _, place = reference.partition("@")
    iteration, _, chunk = place.partition(".")
    named = [stage for stage in plan.stages if stage.stage == name]
    if not named:
        raise UserError(f"run {run} has no stage {name!r}", nearest(name, {stage.stage for stage in plan.stages}))
    if not all(part.isdigit() for part in (iteration, chunk) if part):
        raise UserError(f"{reference!r} is not STAGE@ITERATION", f"write it as {name}@2, or {name}@2.0 for a chunk")
    found = [
        stage
        for stage in named
        if (not iteration or stage.iteration == int(iteration)) and (not chunk or stage.chunk == int(chunk))
    ]
    if not found:
        there = sorted({stage.iteration for stage in named if stage.iteration is not None})
        where = f"iterations {there[0]} to {there[-1]}" if there else "the setup"
        raise UserError(f"run {run} has no {name} at {place}", f"it has it in {where}")
    return found[0]


def _print_one(home: Path, run: str, plan: Plan, stage: StagePlan, *, as_json: bool) -> None:
    stages = by_key(plan)
    inputs = {
        argument: [_source(ref, stages) for ref in refs] for argument, refs in stage.ingredients["inputs"].items()
    }
    manifest = Store(home).find(stage.key)
    if as_json:
        published = None if manifest is None else manifest.ended_at
        place = {"run": run, "stage": stage.stage, "iteration": stage.iteration, "chunk": stage.chunk}
        dump_json(
            {
                **place,
                "key": stage.key,
                "published_at": published,
                "ingredients": stage.ingredients,
                "inputs_are": inputs,
            }
        )
        return
    rows = [[name, value] for name, value in _flat({**stage.ingredients, "inputs": inputs}).items()]
    show_table(["ingredient", "value"], rows)
    say(f"key of {stage.label} in {run}: {stage.key}")
    say("published" if manifest else "not published yet")


def _print_two(one: tuple[str, Plan, StagePlan], other: tuple[str, Plan, StagePlan], *, as_json: bool) -> None:
    (name, plan, stage), (name2, plan2, stage2) = one, other
    changes = compare(stage.ingredients, stage2.ingredients)
    cause = first_cause(stage, stage2, by_key(plan), by_key(plan2)) if changes else None
    if as_json:
        dump_json(
            {
                "runs": [name, name2],
                "stage": stage2.label,
                "keys": [stage.key, stage2.key],
                "same": not changes,
                "changes": [_plain(change) for change in changes],
                "first_cause": cause and {"path": cause.path, "changes": [_plain(change) for change in cause.changes]},
            }
        )
        return
    if cause is None:
        say(f"{stage2.label} has the same key in {name} and {name2}: it is one artifact, {stage.key}")
        return
    rows = [[change.kind, change.name, _shown(change.old), _shown(change.new)] for change in changes]
    show_table(["differs", "what", name, name2], rows)
    if not own(changes):
        say("only what it reads differs")
    say(f"first cause: {cause.path[0]}: {'; '.join(change.text() for change in cause.changes)}")
    if len(cause.path) > 1:
        say(f"on the way: {' -> '.join(cause.path)}")


def _source(ref: str, stages: dict[str, StagePlan]) -> str:
    """Return where an input comes from in words: the stage, its output and the first characters of its key."""
    key, slash, output = ref.partition("/")
    stage = stages.get(key)
    return f"{stage.label} {output} {key[:12]}" if slash and stage else ref


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            path: leaf
            for key, item in value.items()
            for path, leaf in _flat(item, f"{name}.{key}" if name else key).items()
        }
    if isinstance(value, list):
        return {name: ", ".join(str(item) for item in value)}
    return {name: "null" if value is None else value}


def _plain(change: Change) -> dict[str, Any]:
    return {"kind": change.kind, "name": change.name, "old": change.old, "new": change.new}


def _shown(value: Any) -> Any:
    return ", ".join(str(item)[:12] for item in value) if isinstance(value, list) else value
