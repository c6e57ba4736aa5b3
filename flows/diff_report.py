"""What `cgrpo diff` prints."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.changes import by_key, first_cause
from flows.derive import places
from flows.diff import Difference, FieldDifference, diff
from flows.report import show_table
from flows.terminal import dump_json, say
from storage.plans import Plan
from storage.runs import open_run, read_plan

SHOWN = 12  # rows in the terminal; --json has all of them


def print_diff(home: Path, old: str, new: str, *, tolerance: float, as_json: bool) -> bool:
    """Print the first artifact that differs between two runs; return whether any does."""
    names = open_run(home, old).name, open_run(home, new).name
    plans = read_plan(home, names[0]), read_plan(home, names[1])
    found = diff(home, *plans, tolerance)
    why = _why(found.first, *plans) if found.first else ""
    if as_json:
        dump_json(
            {
                "runs": names,
                "shared": found.shared,
                "equal": found.equal,
                "not_compared": found.not_compared,
                "first": found.first and {**_place(found.first), "cause": why, **_rows(found.first)},
            }
        )
        return found.first is not None
    say(f"{found.shared} stages are shared; {found.equal} have other keys and the same content")
    if found.not_compared:
        say(f"{len(found.not_compared)} are not in both, or not published: {', '.join(found.not_compared[:6])}")
    if found.first is None:
        say(f"nothing that both published differs between {names[0]} and {names[1]}")
    else:
        _show(found.first, names)
        say(f"cause: {why}")
    return found.first is not None


def _show(first: Difference, names: tuple[str, str]) -> None:
    say(f"first difference: {first.output} of {first.stage.label}, {first.rows} rows in {names[1]}")
    for name, alone in zip(names, first.only, strict=True):
        if alone:
            say(f"only in {name}: {len(alone)} rows: {'; '.join(alone[:3])}")
    for field, number in Counter(one.field for one in first.fields).most_common():
        say(f"{field}: another value in {number} rows")
    if first.fields:
        rows = [[one.row, one.field, *_shown(one)] for one in first.fields[:SHOWN]]
        show_table(["row", "field", *names], rows)
    if len(first.fields) > SHOWN:
        say(f"and {len(first.fields) - SHOWN} more; --json has all")


def _shown(one: FieldDifference) -> tuple[Any, Any]:
    """Return both values; of long lists only from where they part."""
    if not (isinstance(one.old, tuple) and isinstance(one.new, tuple)):
        return one.old, one.new
    pairs = zip(one.old, one.new, strict=False)
    start = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one.old), len(one.new)))
    return tuple(f"{len(value)} values, from {start}: {value[start : start + 4]}" for value in (one.old, one.new))  # type: ignore[return-value]


def _place(first: Difference) -> dict[str, Any]:
    stage = first.stage
    place = {"stage": stage.stage, "iteration": stage.iteration, "chunk": stage.chunk, "output": first.output}
    return {**place, "key": stage.key, "rows": first.rows}


def _rows(first: Difference) -> dict[str, Any]:
    return {"only_old": first.only[0], "only_new": first.only[1], "fields": [asdict(one) for one in first.fields]}


def _why(first: Difference, old: Plan, new: Plan) -> str:
    stage = first.stage
    base = places(old)[stage.stage, stage.iteration, stage.chunk]
    cause = first_cause(base, stage, by_key(old), by_key(new))
    return f"{cause.path[0]}: {'; '.join(change.text() for change in cause.changes)}"
