"""Where two runs first differ in what they published: stages in plan order, rows by what they are, field by field.

Ids and keys differ wherever lineage does, though the content may be the same. So a row is known by its place: the slot
of its prompt, its index in the group, the row that it is about. A field that holds an id is compared by the place that
the id means; times, paths and stage keys are left out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flows.derive import places
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from storage.schemas import RECORDS

PLACES = ("line", "iteration", "slot", "policy_version", "optimizer_step")  # of a row that no other row places
PLACES_WITHIN = ("origin", "index", "sample_index", "attempt", "policy_version", "optimizer_step")
NOT_CONTENT = frozenset({"elapsed_ms", "latency_ms", "seconds", "weights", "checkpoint", "parent"})
LINEAGE_ID = re.compile(r"[a-z]+-[0-9a-f]{20}")
Names = dict[str, str]  # id -> the place that it means
Table = dict[str, Any]  # place -> row


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDifference:
    """One field of one row that is not the same."""

    row: str
    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first artifact that differs. only: the places of rows that only the one or the other run has."""

    stage: StagePlan
    output: str
    rows: int
    only: tuple[tuple[str, ...], tuple[str, ...]]
    fields: tuple[FieldDifference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDiff:
    """shared: stages with one key. equal: stages with two keys and the same content. not_compared: stages that only
    one of the runs has, or has published. All of them up to the first difference."""

    shared: int
    equal: int
    not_compared: tuple[str, ...]
    first: Difference | None


def diff(home: Path, old: Plan, new: Plan, tolerance: float) -> RunDiff:
    """Compare what two runs published, in plan order. tolerance: floats that differ by no more are the same."""
    store, before = Store(home), places(old)
    names: tuple[Names, Names] = ({}, {})
    shared = equal = 0
    not_compared = []
    for stage in new.stages:
        base = before.get((stage.stage, stage.iteration, stage.chunk))
        if base is None or not (store.has(base.key) and store.has(stage.key)):
            not_compared.append(stage.label)
            continue
        tables = _tables(store, base, names[0]), _tables(store, stage, names[1])
        if base.key == stage.key:
            shared += 1
            continue
        found = _first_difference(stage, tables, names, tolerance)
        if found is not None:
            return RunDiff(shared=shared, equal=equal, not_compared=tuple(not_compared), first=found)
        equal += 1
    only_old = [base.label for place, base in before.items() if place not in places(new)]
    return RunDiff(shared=shared, equal=equal, not_compared=(*not_compared, *only_old), first=None)


def _tables(store: Store, stage: StagePlan, names: Names) -> dict[str, Table]:
    """Return the tables of a stage by output; the ids of their rows are added to `names`."""
    return {
        output: dict(_placed(store.read(stage.key, output, RECORDS[record]), names))
        for output, record in stage.outputs.items()
        if record in RECORDS
    }


def _placed(rows: list[Any], names: Names) -> Iterator[tuple[str, Any]]:
    """Yield each row with its place: that of the row it is about and which one of those it is, numbered if need be."""
    taken: dict[str, int] = {}
    for row in rows:
        values = {item.name: getattr(row, item.name) for item in fields(row)}
        about = [] if "slot" in values else [names[value] for name, value in _ids(values) if value in names]
        parts = [f"{name} {values[name]}" for name in (PLACES_WITHIN if about else PLACES) if name in values]
        own = str(next(iter(values.values())))
        place = ", ".join([*about[:1], *parts]) or own
        taken[place] = taken.get(place, 0) + 1
        place = f"{place} ({taken[place]})" if taken[place] > 1 else place
        names.setdefault(own, place)
        yield place, row


def _ids(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in values.items() if name.endswith("_id") and isinstance(value, str)]


def _first_difference(
    stage: StagePlan, tables: tuple[dict[str, Table], dict[str, Table]], names: tuple[Names, Names], tolerance: float
) -> Difference | None:
    for output in tables[1]:
        old, new = tables[0].get(output, {}), tables[1][output]
        only = tuple(p for p in old if p not in new), tuple(p for p in new if p not in old)
        found = [
            one for place in new if place in old for one in _fields(place, old[place], new[place], names, tolerance)
        ]
        if only[0] or only[1] or found:
            return Difference(stage=stage, output=output, rows=len(new), only=only, fields=tuple(found))
    return None


def _fields(place: str, old: Any, new: Any, names: tuple[Names, Names], tolerance: float) -> Iterator[FieldDifference]:
    """Yield the fields that differ; the first one is the row's own id or subject, which its place stands for."""
    for item in fields(new)[1:]:
        if item.name in NOT_CONTENT:
            continue
        one, other = getattr(old, item.name, None), getattr(new, item.name)
        if item.name.endswith("_id"):
            one, other = _meaning(one, names[0]), _meaning(other, names[1])
        if not _same(one, other, tolerance):
            yield FieldDifference(row=place, field=item.name, old=one, new=other)


def _meaning(value: Any, names: Names) -> Any:
    """Return the place that an id means; an id of rows that are in neither plan says nothing but that it is one."""
    if not isinstance(value, str):
        return value
    return names.get(value, "(elsewhere)" if LINEAGE_ID.fullmatch(value) else value)


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b, tolerance) for a, b in pairs)
    if isinstance(one, float) and isinstance(other, float):
        return one == other or abs(one - other) <= tolerance
    return bool(one == other)
