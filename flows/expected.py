"""How long a stage is expected to take and how much it samples: from the manifests of such stages before it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cgrpo_core.ids import digest
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from storage.runs import list_runs, read_plan

Basis = Literal["same settings", "other settings", "none"]
RUNS, PER_TASK = 6, 20  # how far back to look: the newest runs, and in all of them so many stages of a task


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A published stage: its settings (a digest), its engine's model, and the tokens and seconds for each prompt."""

    settings: str
    model: str | None
    tokens: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a stage should take. basis: stages with the same settings, or of the same task with others, or nothing."""

    tokens: float | None
    seconds: float | None
    basis: Basis
    observations: int


def observe(home: Path, tasks: Iterable[str]) -> dict[str, list[Observation]]:
    """Return what published stages of these tasks took, from the newest runs."""
    store, seen = Store(home), set[str]()
    found: dict[str, list[Observation]] = {task: [] for task in tasks}
    for run in reversed(list_runs(home)[-RUNS:]):
        plan = read_plan(home, run.name)
        for stage in reversed(plan.stages):
            if len(found.get(stage.task, [0] * PER_TASK)) >= PER_TASK or stage.key in seen:
                continue
            seen.add(stage.key)
            manifest = store.find(stage.key)
            if manifest is not None:
                prompts = prompts_of(stage, plan)
                tokens = manifest.metrics.get("completion_tokens")
                observation = Observation(
                    settings=_settings(stage),
                    model=_model(stage),
                    tokens=None if tokens is None else tokens / prompts,
                    seconds=(manifest.ended_at - manifest.started_at) / prompts,
                )
                found[stage.task].append(observation)
    return found


def expect(stage: StagePlan, plan: Plan, observed: list[Observation]) -> Expected:
    """Return what a stage should take, by the mean over stages with its settings, or else with others and its model."""
    same = [one for one in observed if one.settings == _settings(stage)]
    chosen = same or [one for one in observed if one.model == _model(stage)]
    if not chosen:
        return Expected(tokens=None, seconds=None, basis="none", observations=0)
    prompts = prompts_of(stage, plan)
    tokens = [one.tokens for one in chosen if one.tokens is not None]
    return Expected(
        tokens=prompts * sum(tokens) / len(tokens) if tokens else None,
        seconds=prompts * sum(one.seconds for one in chosen) / len(chosen),
        basis="same settings" if same else "other settings",
        observations=len(chosen),
    )


def prompts_of(stage: StagePlan, plan: Plan) -> int:
    """Return how many prompts a stage handles; 1 for one whose work does not depend on them."""
    run = plan.config["params"]["run"]
    prompts, chunks = int(run["prompts_per_iteration"]), int(run["chunks"])
    if stage.section == "explore":
        chunk = min(stage.chunk or 0, chunks - 1)
        return max(1, prompts * (chunk + 1) // chunks - prompts * chunk // chunks)
    return prompts if "samples" in stage.inputs else 1


def _settings(stage: StagePlan) -> str:
    """Return a digest of all that makes one such stage take longer than another: parameters, engine, its placement."""
    engine: dict[str, Any] = dict(stage.engine or {})
    engine.pop("model", None)
    return digest([stage.task, stage.params, engine, _model(stage)])


def _model(stage: StagePlan) -> str | None:
    """Return the identity of the model of the stage's engine."""
    return None if stage.engine is None else str(stage.engine.get("model", {}).get("identity", {}).get("digest"))
