"""What `cgrpo plan`, `cgrpo fork` and `cgrpo rerun` print: what would run and why, tokens, time, memory."""

from typing import Any, TextIO

from flows.forecast import Forecast, grouped_rows, stage_rows, totals
from flows.report import show_table
from flows.terminal import as_duration, as_gib, say


def print_forecast(found: Forecast, *, every: bool, file: TextIO | None = None) -> None:
    """Print a row for each stage name, or for every stage; the sums in words go to stderr."""
    rows = stage_rows(found) if every else grouped_rows(found)
    rows = [{**row, "key": row["key"][:16]} if "key" in row else row for row in rows]
    shown = [
        [_number(name, value) if name in ("tokens", "seconds") else value for name, value in row.items()]
        for row in rows
    ]
    names = {"seconds": "time"}
    show_table([names.get(name, name) for name in rows[0]], shown, file=file)
    say_totals(found)
    say_memory(found.memory)


def say_totals(found: Forecast) -> None:
    """Say what was decided, how many stages run and what they should take."""
    for name, decision in found.plan.config.get("decisions", {}).items():
        say(f"{name} = {decision['value']}, {decision['why']}")
    sums = totals(found)
    say(f"{sums['stages']} stages: {sums['run']} to run, {sums['reuse']} to reuse")
    if found.compared_with and sums["run"]:
        changed = "; ".join(sums["changed"][:4]) or "nothing differs"
        say(f"compared with {found.compared_with}: {changed}")
    if sums["seconds"] is not None:
        tokens = f", {sums['tokens']:.0f} tokens sampled" if sums["tokens"] else ""
        other = sums["by_other_settings"]
        basis = f"; {other} of the stages by runs with other settings" if other else ""
        say(f"expected: {as_duration(sums['seconds'])}, one stage after the other{tokens}{basis}")
    elif sums["run"]:
        say(f"expected: unknown; {sums['without_observation']} of the stages have never run here")


def say_memory(memory: dict[str, Any]) -> None:
    """Say what the engines need, against what is there."""
    for name, engine in memory["engines"].items():
        if "unknown" in engine:
            say(f"memory of {name}: unknown; {engine['unknown']}")
        else:
            parts = ", ".join(f"{part} {as_gib(size)}" for part, size in engine["parts"].items() if size)
            times = f"{engine['replicas']} x " if engine["replicas"] > 1 else ""
            say(f"memory of {name}: {times}{as_gib(engine['bytes'])} ({parts})")
    need, there = memory["need"], memory["available"]
    if need["memory"]:
        free = as_gib(there["memory"]) if there["memory"] else "an unknown size"
        say(f"memory: {as_gib(need['memory'])} of {free} that is free")
    if need["gpus"]:
        say(f"GPUs: {need['gpus']:g} of {len(there['gpus'])}")
    if memory["short"]:
        say(f"DOES NOT FIT: {'; '.join(memory['short'])}")
    else:
        say("the engines fit" if memory["short"] is not None else "whether the engines fit is not known")


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return as_duration(value) if name == "seconds" else f"{value:.0f}"
