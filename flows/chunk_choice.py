"""How many chunks an iteration has, where `run.chunks` is auto: decided when a run is planned, and frozen in its plan.

Chunks overlap, so with c of them what the sampler does and what else takes time (critiques, verification) hide each
other but for one chunk's share of the shorter; each chunk has its own copy of the stages, which costs a little:

    T(c) = max(S, W) + min(S, W) / c + c * o

S: seconds at which a sampling stage is at work. W: seconds of all other stages of explore. o: seconds that pass between
the stages of one chunk. All three come from published iterations of a run here with the same stages and engines.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from cgrpo_core.ids import digest
from flows.plan import compile_plan
from flows.spec import Spec
from flows.time_bar import shares
from storage.artifacts import Manifest, Store
from storage.plans import Plan, StagePlan
from storage.runs import list_runs, read_plan

MOST, RUNS = 16, 6
WITH_API, WITHOUT = 4, 1  # when nothing was measured: a model behind an API keeps a chunk waiting, and little else does


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over the iterations of a run: seconds for each prompt, and for each chunk."""

    run: str
    iterations: int
    sampling: float
    other: float
    per_chunk: float


def settle_chunks(home: Path, spec: Spec, identities: Mapping[str, Any]) -> tuple[Spec, dict[str, dict[str, Any]]]:
    """Return the specification with a number of chunks, and what was decided and why; unchanged if one was given."""
    if spec.params.run.chunks != "auto":
        return spec, {}
    sole = _with_chunks(spec, 1, iterations=1)
    explore = [stage for stage in compile_plan(sole, identities).stages if stage.section == "explore"]
    chunks, why = choose(spec.params.run.prompts_per_iteration, explore, measure(home, spec.pipeline, explore))
    return _with_chunks(spec, chunks), {"run.chunks": {"value": chunks, "why": why}}


def choose(prompts: int, explore: list[StagePlan], measured: Measured | None) -> tuple[int, str]:
    """Return the number of chunks and the reason: the quickest by the measurement, or else by rule."""
    most = min(MOST, prompts)
    if measured is None:
        by_api = any(stage.engine is not None and stage.engine["kind"] == "openai" for stage in explore)
        chunks = min(most, WITH_API if by_api else WITHOUT)
        asked = "a model behind an API is asked" if by_api else "no model behind an API is asked"
        return chunks, f"by rule, as no such run was measured here: {asked}"
    seconds = {count: expected_seconds(measured, prompts, count) for count in (1, 2, 4, 8, 16) if count <= most}
    chunks = min(seconds, key=lambda count: (seconds[count], count))
    return chunks, (
        f"by {measured.iterations} iterations of {measured.run}: sampling {measured.sampling * prompts:.1f} s, other "
        f"stages {measured.other * prompts:.1f} s, {measured.per_chunk:.1f} s for each chunk; explore should take "
        f"{seconds[chunks]:.1f} s, in one chunk {seconds[1]:.1f} s"
    )


def expected_seconds(measured: Measured, prompts: int, chunks: int) -> float:
    """Return what explore should take, as the formula above says."""
    sampling, other = measured.sampling * prompts, measured.other * prompts
    return max(sampling, other) + min(sampling, other) / chunks + chunks * measured.per_chunk


def measure(home: Path, pipeline: str, explore: list[StagePlan]) -> Measured | None:
    """Return what the newest run here with the same stages of explore took, or None if none has an iteration."""
    store, wanted = Store(home), {_settings(stage) for stage in explore}
    for run in [run for run in reversed(list_runs(home)) if run.pipeline == pipeline][:RUNS]:
        plan = read_plan(home, run.name)
        if {_settings(stage) for stage in plan.stages if stage.section == "explore"} == wanted:
            rows = [row for row in _iterations(plan, store) if row is not None]
            if rows:
                later = rows[1:] or rows  # in the first one workers and engines still start
                sampling, other, per_chunk = (median(column) for column in zip(*later, strict=True))
                return Measured(
                    run=run.name, iterations=len(later), sampling=sampling, other=other, per_chunk=per_chunk
                )
    return None


def _iterations(plan: Plan, store: Store) -> Iterable[tuple[float, float, float] | None]:
    run = plan.config["params"]["run"]
    for iteration in range(1, int(run["iterations"]) + 1):
        stages = [stage for stage in plan.stages if stage.iteration == iteration and stage.section == "explore"]
        published = [(stage, manifest) for stage in stages if (manifest := store.find(stage.key)) is not None]
        complete = published and len(published) == len(stages)
        yield _figures(published, int(run["prompts_per_iteration"]), int(run["chunks"])) if complete else None


def _figures(published: list[tuple[StagePlan, Manifest]], prompts: int, chunks: int) -> tuple[float, float, float]:
    """Return the seconds of sampling and of other stages for each prompt, and those between stages for each chunk."""
    spans = [
        (one.started_at, one.ended_at, "sampling" if _samples(stage) else "other stages") for stage, one in published
    ]
    other = sum(end - start for start, end, part in spans if part != "sampling")
    between = 0.0
    for chunk in {stage.chunk for stage, _ in published}:
        own = [span for (stage, _), span in zip(published, spans, strict=True) if stage.chunk == chunk]
        between += shares(own).get("between stages", 0.0)
    return shares(spans).get("sampling", 0.0) / prompts, other / prompts, between / chunks


def _samples(stage: StagePlan) -> bool:
    return stage.engine is not None and stage.engine["kind"] == "vllm"


def _settings(stage: StagePlan) -> str:
    """Return a digest of what makes a stage take its time: its parameters and engine, not how much of it there is."""
    engine = dict(stage.engine or {})
    model = engine.pop("model", {}).get("identity", {}).get("digest")
    params = {name: values for name, values in stage.params.items() if name != "run"}
    return digest([stage.stage, stage.task, params, engine, model])


def _with_chunks(spec: Spec, chunks: int, **run: int) -> Spec:
    params = replace(spec.params, run=replace(spec.params.run, chunks=chunks, **run))
    return spec.model_copy(update={"params": params})
