"""Why two stages have different keys: the ingredients that differ, and upstream of them the first cause. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from storage.plans import Plan, StagePlan

Kind = Literal["version", "schema", "params", "engine", "content", "chunks", "seed", "salt", "graph", "input"]
ABSENT = "(absent)"
_KINDS: dict[str, Kind] = {
    "stage_version": "version",
    "record_schemas": "schema",
    "params": "params",
    "engine": "engine",
    "seed": "seed",
    "salt": "salt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One ingredient that differs. input: what an argument reads has another key; content: a data set or model is
    another; graph: the stages do different things, such as another task or argument."""

    kind: Kind
    name: str
    old: Any
    new: Any

    def text(self) -> str:
        """Return it in words, such as `critique.kind: 'indicative' -> 'cot'`."""
        if self.kind == "input":
            return f"input {self.name} changed"
        if self.kind == "content":
            return f"content of {self.name} changed"
        if self.kind == "schema":
            return f"schema of {self.name} changed"
        name = self.kind if self.name in ("stage_version", "salt") else self.name
        return f"{name}: {_short(self.old)} -> {_short(self.new)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The first stage, in plan order, that differs by itself; path: from there to the stage that was asked about."""

    path: tuple[str, ...]
    changes: tuple[Change, ...]


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return what differs between the ingredients of two stage keys; an empty list means the same key."""
    changes = [*_inputs(old["inputs"], new["inputs"])]
    for part in sorted({*old, *new} - {"inputs"}):
        before, after = _paths(part, old.get(part)), _paths(part, new.get(part))
        for name in sorted({*before, *after}):
            pair = before.get(name, ABSENT), after.get(name, ABSENT)
            if pair[0] != pair[1]:
                changes.append(Change(kind=_KINDS.get(part, "graph"), name=name, old=pair[0], new=pair[1]))
    return sorted(changes, key=lambda change: change.kind == "input")


def own(changes: list[Change]) -> list[Change]:
    """Return the changes of the stage itself: those that do not come from upstream."""
    return [change for change in changes if change.kind != "input"]


def by_key(*plans: Plan) -> dict[str, StagePlan]:
    """Return the stages of plans by their keys."""
    return {stage.key: stage for plan in plans for stage in plan.stages}


def first_cause(old: StagePlan, new: StagePlan, olds: Mapping[str, StagePlan], news: Mapping[str, StagePlan]) -> Cause:
    """Follow the inputs that differ upstream to the first stage that differs by itself.

    olds, news: the stages of both plans, by key; an input that is in neither ends its path there.
    """
    order = {key: place for place, key in enumerate(news)}
    below: dict[tuple[str, str], StagePlan | None] = {(old.key, new.key): None}
    waiting, best = [(old, new)], (old, new)
    while waiting:
        one, other = waiting.pop()
        if own(compare(one.ingredients, other.ingredients)) and order.get(other.key, 0) <= order.get(best[1].key, 0):
            best = (one, other)
        for before, after in _pairs(one, other, olds, news):
            if (before.key, after.key) not in below:
                below[before.key, after.key] = other
                waiting.append((before, after))
    above = {other: lower for (_, other), lower in below.items()}
    path, at = [best[1]], above[best[1].key]
    while at is not None:
        path.append(at)
        at = above[at.key]
    changes = tuple(own(compare(best[0].ingredients, best[1].ingredients)))
    return Cause(path=tuple(stage.label for stage in path), changes=changes)


def _pairs(
    one: StagePlan, other: StagePlan, olds: Mapping[str, StagePlan], news: Mapping[str, StagePlan]
) -> list[tuple[StagePlan, StagePlan]]:
    pairs = []
    for argument, refs in other.inputs.items():
        for before, after in zip(one.inputs.get(argument, ()), refs, strict=False):
            if before.key != after.key and before.key in olds and after.key in news:
                pairs.append((olds[before.key], news[after.key]))
    return pairs


def _inputs(old: Mapping[str, list[str]], new: Mapping[str, list[str]]) -> list[Change]:
    changes = []
    for argument in sorted({*old, *new}):
        before, after = old.get(argument, []), new.get(argument, [])
        kind: Kind = "input" if all("/" in ref for ref in [*before, *after]) else "content"
        if not before or not after:
            kind = "graph"
        elif len(before) != len(after):
            changes.append(Change(kind="chunks", name=f"chunks of {argument}", old=len(before), new=len(after)))
            continue
        if before != after:
            changes.append(Change(kind=kind, name=argument, old=before or ABSENT, new=after or ABSENT))
    return changes


def _paths(name: str, value: Any) -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted path; a parameter is called as `--set` calls it."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    prefix = "" if name in ("params", "record_schemas") else f"{name}."
    return {f"{prefix}{path}": leaf for key, item in value.items() for path, leaf in _paths(key, item).items()}


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) or value != ABSENT else value
    return text if len(text) <= 60 else text[:57] + "..."
