"""What may be removed from a home, and its removal: nothing that a run refers to, and no cache that is still due.

Referred to is every artifact that a run's frozen plan names, and what was read for it, through the manifests. Weights
and checkpoints are caches of policies: each run keeps the weights of its newest policy and of that one's parent, and
as many of its newest checkpoints as its `checkpoint.keep` says. What any run keeps stays. The compacted copy of a run
goes when the run is gone.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from storage.artifacts import Store
from storage.compacted import ROOM
from storage.durable import take_away
from storage.plans import Plan, StagePlan
from storage.policies import complete
from storage.runs import HomeLock, list_runs, read_plan

Kind = Literal["artifact", "weights", "checkpoint", "copy", "leftover"]
KEPT_WEIGHTS, KEPT_CHECKPOINTS = 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """A directory that may go: its path relative to the home, its size, and why."""

    kind: Kind
    path: str
    bytes: int
    why: str


def find_garbage(home: Path) -> list[Garbage]:
    """Return what may be removed. Raises RunCorrupt if a run cannot be read: it might refer to anything."""
    plans = [read_plan(home, run.name) for run in list_runs(home)]
    store = Store(home)
    referred = _referred(store, plans)
    weights = {key for plan in plans for key in _kept_weights(store, plan)}
    checkpoints = {key for plan in plans for key in _kept_checkpoints(home, plan)}
    found = [
        _garbage(home, "artifact", path, "no run refers to it")
        for path in _directories(home / "artifacts", depth=2)
        if path.name not in referred
    ]
    found += _caches(home, "weights", weights, referred, "superseded; a replay brings them back")
    found += _caches(home, "checkpoint", checkpoints, referred, "more than checkpoint.keep")
    names = {run.name for run in list_runs(home)}
    found += [
        _garbage(home, "copy", path, "a compacted copy of a run that is gone")
        for path in _directories(home / ROOM, depth=1)
        if path.name not in names
    ]
    found += [
        _garbage(home, "leftover", path, "left by a publish that was cut off")
        for path in _directories(home / "tmp", depth=1)
    ]
    return found


def collect(home: Path, garbage: Iterable[Garbage]) -> int:
    """Remove what `find_garbage` found and is garbage still; return the bytes. Raises RunBusy while a run goes on."""
    with HomeLock(home, alone=True):
        still = {item.path for item in find_garbage(home)}
        removed = 0
        for item in garbage:
            if item.path in still and _remove(home, item):
                removed += item.bytes
    return removed


def _remove(home: Path, item: Garbage) -> bool:
    path = home / item.path
    if item.kind == "leftover":
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return True
    return take_away(home, path)


def _referred(store: Store, plans: list[Plan]) -> set[str]:
    """Return the keys of all plans, and of what their stages were made from: a rerun that ends early has no updates
    of its own in its plan, though its policies come from them."""
    referred = {stage.key for plan in plans for stage in plan.stages}
    waiting = {ref.key for plan in plans for stage in plan.stages for refs in stage.inputs.values() for ref in refs}
    waiting -= referred
    while waiting:
        key = waiting.pop()
        referred.add(key)
        manifest = store.find(key)
        refs = [ref for refs in manifest.inputs.values() for ref in refs] if manifest else []
        waiting |= {ref.partition("/")[0] for ref in refs if "/" in ref} - referred
    return referred


def _updates(plan: Plan) -> list[StagePlan]:
    """Return the stages that make policies, oldest first; the stage that saves a checkpoint hands one on."""
    found = [stage for stage in plan.stages if stage.iteration and "Policy" in stage.outputs.values()]
    return [stage for stage in found if "samples" in stage.inputs]


def _kept_weights(store: Store, plan: Plan) -> list[str]:
    published = [stage.key for stage in _updates(plan) if store.has(stage.key)]
    return published[-KEPT_WEIGHTS:] if "graph" in plan.config or not _done(store, plan) else []


def _done(store: Store, plan: Plan) -> bool:
    return all(store.has(stage.key) for stage in plan.stages)


def _kept_checkpoints(home: Path, plan: Plan) -> list[str]:
    keep = int(plan.config["params"].get("checkpoint", {}).get("keep", KEPT_CHECKPOINTS))
    there = [stage.key for stage in _updates(plan) if complete(home, f"checkpoints/{stage.key}")]
    return there[-keep:]


def _caches(home: Path, kind: Kind, kept: set[str], referred: set[str], why: str) -> list[Garbage]:
    folder = "weights" if kind == "weights" else "checkpoints"
    return [
        _garbage(home, kind, path, why if path.name in referred else "no run refers to it")
        for path in _directories(home / folder, depth=1)
        if path.name not in kept
    ]


def _directories(root: Path, depth: int) -> list[Path]:
    return sorted(root.glob("/".join("*" * depth))) if root.is_dir() else []


def _garbage(home: Path, kind: Kind, path: Path, why: str) -> Garbage:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    size = sum(one.stat().st_size for one in files)
    return Garbage(kind=kind, path=str(path.relative_to(home)), bytes=size, why=why)
