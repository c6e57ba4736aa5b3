"""Stages computed again from what is stored: the same body, the same inputs and parameters, and no engine.

Every stage without an engine must give the stored rows again: problems from their source, prompts, verdicts,
selections, advantages, the digest of the base model. What was measured (a time, a latency) is not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.records import Verdict
from storage.artifacts import Store
from storage.plans import StagePlan
from storage.schemas import RECORDS, unique_fields
from tasks.stage import BODIES, Published, StageContext
from tasks.versions import STAGE_VERSIONS

MEASURED = frozenset({"elapsed_ms", "latency_ms", "seconds"})  # fields that differ from one time to the next
UNJUDGED = frozenset({"timeout", "error"})  # statuses that depend on the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What computing one stage again showed. skipped: why it was not done, or None. rows: that were compared.

    differences: of rows, as text. incomparable: verdicts of another verifier version, or that a deadline cut off.
    """

    skipped: str | None = None
    rows: int = 0
    differences: tuple[str, ...] = ()
    incomparable: int = 0


def is_recomputable(stage: StagePlan) -> bool:
    """Tell whether a stage is a function of stored records, parameters and the inputs of the run alone."""
    return stage.engine is None


def call_body(
    stage: StagePlan, home: Path, base_dir: str, tables: Mapping[str, Sequence[Any]] | None = None
) -> Published:
    """Return what the body of a stage gives for its stored inputs; `tables` (argument -> rows) replaces some.

    Raises UserError for what is not there or no longer what it was.
    """
    module, _, _ = stage.task.partition(":")
    import_module(module)
    store = Store(home)
    arguments: dict[str, Any] = dict(stage.leaves)
    for argument in stage.inputs:
        given = (tables or {}).get(argument)
        arguments[argument] = list(given) if given is not None else stored_rows(store, stage, argument)
    return BODIES[stage.task](StageContext(stage, home, store, base_dir), **arguments)


def stored_rows(store: Store, stage: StagePlan, argument: str) -> list[Any]:
    """Return the stored rows of one input of a stage. Raises StorageError."""
    rows: list[Any] = []
    for ref in stage.inputs[argument]:
        manifest = store.find(ref.key)
        if manifest is None:
            raise UserError(f"its input {ref.key[:12]} is not in the store")
        rows += store.read(ref.key, ref.output, RECORDS[manifest.outputs[ref.output]["record"]])
    return rows


def recompute(stage: StagePlan, home: Path, base_dir: str) -> Recomputed:
    """Compute a published stage again and compare it row by row with what is stored."""
    store = Store(home)
    try:
        manifest = store.find(stage.key)
        if manifest is None:
            return Recomputed(skipped="it is not published")
        if manifest.stage_version != STAGE_VERSIONS.get(stage.task):
            return Recomputed(skipped=f"version {manifest.stage_version} of the stage is not the one of this program")
        stored: dict[str, list[Any]] = {
            name: store.read(stage.key, name, RECORDS[record]) for name, record in stage.outputs.items()
        }
        published = call_body(stage, home, base_dir)
    except UserError as error:
        return Recomputed(skipped=error.message)
    rows = incomparable = 0
    differences: list[str] = []
    for name, before in stored.items():
        now = list(published.tables[name])
        rows += len(before)
        if len(now) != len(before):
            differences.append(f"{name} has {len(before)} rows, recomputed {len(now)}")
            continue
        for old, new in zip(before, now, strict=True):
            if _incomparable(old, new):
                incomparable += 1
            else:
                differences += _differences(name, old, new)
    return Recomputed(rows=rows, differences=tuple(differences), incomparable=incomparable)


def _incomparable(old: Any, new: Any) -> bool:
    if not isinstance(old, Verdict):
        return False
    return old.verifier != new.verifier or bool({old.status, new.status} & UNJUDGED)


def _differences(table: str, old: Any, new: Any) -> Iterator[str]:
    identity = " ".join(str(getattr(old, name)) for name in unique_fields(type(old)))
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in MEASURED:
            yield f"{table} {identity}: {field.name} is {_short(before)}, recomputed {_short(after)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
