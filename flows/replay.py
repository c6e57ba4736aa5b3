"""`cgrpo replay`: which updates, on which Ray, and what to say of them. Nothing is written into the run."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrpo_core.errors import UserError
from flows.cluster import ray_cluster
from flows.interrupts import interruptible
from flows.report import show_table
from flows.terminal import dump_json, say
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from storage.runs import read_plan

if TYPE_CHECKING:
    from tasks.replay import ReplayedUpdate


def replay_run(
    home: Path,
    name: str,
    *,
    progress: Callable[[str], None],
    first: int | None = None,
    last: int | None = None,
    tolerance: float = 0.0,
) -> list["ReplayedUpdate"]:
    """Take the published updates of iterations `first` to `last` again. Raises UserError when there are none."""
    from tasks.replay import replay_updates, size_of

    plan = read_plan(home, name)
    stages = published_updates(home, name, plan, first, last)
    samples, tokens, seconds = size_of(home, stages)
    progress(
        f"replaying {len(stages)} updates of run {name}, iterations {stages[0].iteration} to {stages[-1].iteration}: "
        f"{samples} samples, {tokens} completion tokens; they took {seconds:.0f} s when they were trained"
    )
    done = []
    with interruptible(), ray_cluster():
        for update in replay_updates(home, Path(plan.config["base_dir"]), stages, tolerance, progress):
            progress(describe(update))
            done.append(update)
    return done


def published_updates(home: Path, name: str, plan: Plan, first: int | None, last: int | None) -> list[StagePlan]:
    """Return the published updates of a run in order, those of iterations `first` to `last`. Raises UserError."""
    from tasks.replay import is_update

    store = Store(home)
    published = [stage for stage in plan.stages if is_update(stage) and store.find(stage.key)]
    chosen = [stage for stage in published if (first or 1) <= (stage.iteration or 0) <= (last or len(plan.stages))]
    if not chosen:
        newest = max((stage.iteration or 0 for stage in published), default=0)
        asked = f" in iterations {first or 1} to {last or 'the last'}"
        raise UserError(
            f"run {name} has no published update{asked}",
            f"its updates are those of iterations 1 to {newest}" if newest else f"go on with: cgrpo resume {name}",
        )
    return chosen


def describe(update: "ReplayedUpdate") -> str:
    """Return what an update's replay showed, in a line."""
    if update.equal:
        return f"update {update.iteration}: equal, weights {update.published[:12]}"
    measured = (
        "the published weights are on disk no more"
        if update.relative is None
        else f"max |difference| {update.max_abs:.3g}, {update.relative:.3g} of how far training had moved the weights"
    )
    return (
        f"update {update.iteration}: DIFFERENT, {update.replayed[:12]} instead of {update.published[:12]}; {measured}"
    )


def passes(updates: list["ReplayedUpdate"], tolerance: float) -> bool:
    """Tell whether every update is equal or within the tolerance; the last one must have been measured."""
    allowed = {"equal", "within", "unmeasured"} if tolerance else {"equal"}
    return all(update.verdict in allowed for update in updates) and updates[-1].verdict in ("equal", "within")


def print_replay(
    home: Path, name: str, *, first: int | None, last: int | None, tolerance: float, as_json: bool
) -> bool:
    """Replay, print, and return whether all updates passed."""
    from tasks.policies import ReplayDiverged

    try:
        updates = replay_run(home, name, progress=say, first=first, last=last, tolerance=tolerance)
    except ReplayDiverged as error:  # before --from, where there is no checkpoint to begin with
        say(f"error: {error.message}\n\nhint: {error.hint}")
        return False
    passed = passes(updates, tolerance)
    rows: list[dict[str, Any]] = [asdict(update) for update in updates]
    if as_json:
        dump_json({"run": name, "tolerance": tolerance, "passed": passed, "updates": rows})
    else:
        columns = ["iteration", "verdict", "published", "replayed", "max_abs", "relative", "seconds"]
        show_table(columns, [[_shown(row[column]) for column in columns] for row in rows])
    failed = next((update for update in updates if update.verdict in ("beyond", "unmeasured")), None)
    if passed:
        say(f"{len(updates)} updates replayed: the published weights{' within tolerance' if tolerance else ''}")
    elif failed is not None:
        say(f"update {failed.iteration} (policy {failed.policy_version}) does not give the published weights")
        say("hint: another machine, thread count or library version sums in another order; see docs/audit.md")
    return passed


def _shown(value: object) -> object:
    return value[:16] if isinstance(value, str) and len(value) == 64 else value
