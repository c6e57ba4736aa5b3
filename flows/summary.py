"""What an iteration did, in one row: read from the manifests and tables that its stages published."""

from collections.abc import Iterable, Sequence

from cgrpo_core.records import UpdateMetrics
from flows.engine_figures import prefix_cache, published, weight_sync
from storage.artifacts import Manifest, Store
from storage.plans import AnyPlace, Plan, StagePlan

Row = dict[str, str | int | float | None]

UPDATE_FIGURES = (
    *("status", "loss", "grad_norm", "entropy", "clip_fraction_low", "clip_fraction_high", "shaping_mean"),
    *("kl_to_sampler", "logprob_gap_max", "samples", "samples_trained", "non_finite_steps"),
)


def stages_of(plan: Plan, iteration: int) -> list[StagePlan]:
    """Return the stages of one iteration in plan order; those of the setup for 0."""
    return [stage for stage in plan.stages if (stage.iteration or 0) == iteration]


def iteration_row(store: Store, stages: Iterable[StagePlan]) -> Row:
    """Return the figures of one iteration; what no stage measured is left out."""
    manifests = published(store, stages)
    row: Row = {}
    for task, name, key in (
        ("tasks.rollout:sample_responses", "rollout", "responses"),
        ("tasks.verify:verify_responses", "verify", "correct"),
        ("tasks.refine:sample_refinements", "refine", "refinements"),
        ("tasks.verify:verify_refinements", "verify_refinements", "correct"),
    ):
        # By task: a graph may have several stages of one, as where groups are sampled again.
        found = [manifest for stage, manifest in manifests if stage.task == task]
        if found:
            row[f"{name}_{key}"] = sum(manifest.counts.get(key, 0) for manifest in found)
    row |= _critiques(manifests)
    row |= _advantage(manifests)
    row |= _sampling(manifests)
    row |= {f"{stage}_prefix_cached": round(share, 3) for stage, share in prefix_cache(manifests).items()}
    row |= {f"sync_{part}_seconds": round(seconds, 3) for part, seconds in weight_sync(manifests).items()}
    for stage, _ in manifests:
        if "UpdateMetrics" in stage.outputs.values():
            row |= _update(store, stage)
    row |= _accuracy(manifests)
    row |= _faults(manifests)
    if manifests:
        row["seconds"] = round(max(m.ended_at for _, m in manifests) - min(m.started_at for _, m in manifests), 1)
    return row


def _critiques(manifests: Sequence[tuple[AnyPlace, Manifest]]) -> Row:
    """Return how many critiques there are, how often a model was asked, and what degraded and why, where any did."""
    found = [manifest.counts for stage, manifest in manifests if "Critique" in stage.outputs.values()]
    totals: dict[str, int] = {}
    for counts in found:
        for name in sorted(counts):
            if name == "critiques" or name.startswith("critiques_"):
                totals[name] = totals.get(name, 0) + counts[name]
            elif name == "attempts":
                totals["critique_attempts"] = totals.get("critique_attempts", 0) + counts[name]
    return {name: total for name, total in totals.items() if total or name == "critiques"}


def _advantage(manifests: Sequence[tuple[AnyPlace, Manifest]]) -> Row:
    found = [manifest for stage, manifest in manifests if "TrainingSample" in stage.outputs.values()]
    groups = sum(manifest.counts.get("groups", 0) for manifest in found)
    if not groups:
        return {}
    judged = sum(manifest.counts.get("judged", 0) for manifest in found)
    reward = sum(manifest.metrics.get("reward_sum", 0.0) for manifest in found)
    flat = sum(manifest.counts.get("groups_without_gradient", 0) for manifest in found)
    return {"reward_mean": reward / judged if judged else None, "groups": groups, "groups_without_gradient": flat}


def _sampling(manifests: Sequence[tuple[AnyPlace, Manifest]]) -> Row:
    tokens = sum(manifest.metrics.get("completion_tokens", 0) for _, manifest in manifests)
    seconds = sum(manifest.metrics.get("sampling_seconds", 0.0) for _, manifest in manifests)
    return {"tokens": int(tokens), "tokens_per_second": round(tokens / seconds, 1)} if seconds else {}


def _accuracy(manifests: Sequence[tuple[AnyPlace, Manifest]]) -> Row:
    """Of all evaluation stages together, over answers that were judged; shards of one benchmark are several stages."""
    found = [manifest for stage, manifest in manifests if "EvalResult" in stage.outputs.values()]
    judged = sum(manifest.counts.get(f"status_{status}", 0) for manifest in found for status in ("ok", "unparsable"))
    return {"accuracy": sum(manifest.counts.get("correct", 0) for manifest in found) / judged} if judged else {}


def _update(store: Store, stage: AnyPlace) -> Row:
    output = next(name for name, record in stage.outputs.items() if record == "UpdateMetrics")
    metrics = store.read(stage.key, output, UpdateMetrics)[0]
    return {name: getattr(metrics, name) for name in UPDATE_FIGURES} | {"update_seconds": round(metrics.seconds, 1)}


def _faults(manifests: Sequence[tuple[AnyPlace, Manifest]]) -> Row:
    names = (
        "rejected",
        "too_long",
        "truncated",
        "status_timeout",
        "status_error",
        "status_unparsable",
        "without_verdict",
        "no_critique",
        "prompts_cut",
        "replies_without_token_count",
        "groups_dropped",
        "penalised",
        "without_solution",
        "solutions_cut",
    )
    totals = {name: sum(manifest.counts.get(name, 0) for _, manifest in manifests) for name in names}
    return {name: total for name, total in totals.items() if total}
