"""What a plan would do on this machine: what runs and why, what it should take, and whether its engines fit."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.expected import Expected, expect, observe
from flows.fit import Estimate, estimate_memory
from flows.reasons import Decision, decide, nearest_plan
from storage.artifacts import Store
from storage.plans import Plan
from storage.policies import complete
from storage.runs import list_runs, read_plan

COMPARED_RUNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """compared_with: the run that the reasons refer to. expected: of the stages that would run, by key."""

    plan: Plan
    compared_with: str | None
    decisions: list[Decision]
    expected: dict[str, Expected]
    memory: Estimate


def forecast(home: Path, plan: Plan, against: tuple[str, Plan] | None = None) -> Forecast:
    """Return what the plan would do; against: the run to compare with, by default the nearest of the newest ones."""
    store = Store(home)
    published = {stage.key for stage in plan.stages if store.has(stage.key)}
    against = against or nearest_plan(plan, _newest(home, plan.pipeline))
    decisions = decide(plan, published, against[1] if against else None, _without_weights(home, plan, published))
    to_run = [decision.stage for decision in decisions if decision.action == "run"]
    observed = observe(home, {stage.task for stage in to_run})
    return Forecast(
        plan=plan,
        compared_with=against[0] if against else None,
        decisions=decisions,
        expected={stage.key: expect(stage, plan, observed[stage.task]) for stage in to_run},
        memory=estimate_memory(home, plan),
    )


def stage_rows(found: Forecast) -> list[dict[str, Any]]:
    """Return a row for each stage."""
    rows = []
    for decision in found.decisions:
        stage, expected = decision.stage, found.expected.get(decision.stage.key)
        rows.append(
            {
                "iteration": stage.iteration,
                "chunk": stage.chunk,
                "section": stage.section,
                "stage": stage.stage,
                "engine": stage.engine["name"] if stage.engine else None,
                "action": decision.action,
                "why": decision.why,
                "tokens": expected.tokens if expected else None,
                "seconds": expected.seconds if expected else None,
                "basis": expected.basis if expected else None,
                "key": stage.key,
            }
        )
    return rows


def grouped_rows(found: Forecast) -> list[dict[str, Any]]:
    """Return a row for each name of a stage: how often it runs and is reused, the reasons, tokens and seconds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in stage_rows(found):
        groups.setdefault((row["section"], row["stage"]), []).append(row)
    return [
        {
            "section": section,
            "stage": stage,
            "engine": rows[0]["engine"],
            "run": sum(row["action"] == "run" for row in rows),
            "reuse": sum(row["action"] == "reuse" for row in rows),
            "why": _reasons(row["why"] for row in rows if row["why"]),
            "tokens": _total(row["tokens"] for row in rows if row["action"] == "run"),
            "seconds": _total(row["seconds"] for row in rows if row["action"] == "run"),
        }
        for (section, stage), rows in groups.items()
    ]


def totals(found: Forecast) -> dict[str, Any]:
    """Return how many stages run, what they take one after the other, and what that rests on."""
    to_run = [decision for decision in found.decisions if decision.action == "run"]
    expected = list(found.expected.values())
    return {
        "stages": len(found.decisions),
        "run": len(to_run),
        "reuse": len(found.decisions) - len(to_run),
        "tokens": _total(one.tokens for one in expected if one.tokens is not None),
        "seconds": _total(one.seconds for one in expected),
        "without_observation": sum(one.basis == "none" for one in expected),
        "by_other_settings": sum(one.basis == "other settings" for one in expected),
        "compared_with": found.compared_with,
        "changed": sorted({text for decision in to_run for text in decision.changed_here}),
    }


def as_json(found: Forecast) -> dict[str, Any]:
    """Return all of it as plain values."""
    decisions = found.plan.config.get("decisions", {})
    return {"totals": totals(found), "decisions": decisions, "memory": found.memory, "stages": stage_rows(found)}


def _newest(home: Path, pipeline: str) -> list[tuple[str, Plan]]:
    runs = [run for run in reversed(list_runs(home)) if run.pipeline == pipeline][:COMPARED_RUNS]
    return [(run.name, read_plan(home, run.name)) for run in runs]


def _without_weights(home: Path, plan: Plan, published: set[str]) -> set[str]:
    """Return the published policies that a stage would read of which neither weights nor checkpoint are left."""
    read = {ref.key for stage in plan.stages if stage.key not in published for ref in stage.inputs.get("policy", ())}
    writers = {stage.key for stage in plan.stages if stage.iteration and "Policy" in stage.outputs.values()}
    return {
        key
        for key in read & writers & published
        if not complete(home, f"weights/{key}") and not complete(home, f"checkpoints/{key}")
    }


def _total(values: Iterable[float | None]) -> float | None:
    """Return the sum, or None when nothing, or one of them, is unknown."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)


def _reasons(texts: Iterable[str]) -> str:
    counted = Counter(texts).most_common()
    shown = "; ".join(text for text, _ in counted[:2])
    return shown + (f"; and {len(counted) - 2} more" if len(counted) > 2 else "")
