"""What the engines of an iteration did beside their work: the way of the weights, and what the prefix cache saved."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from storage.artifacts import Manifest, Store
from storage.plans import AnyPlace

Published = Sequence[tuple[AnyPlace, Manifest]]
SYNC = {  # what is shown -> the metric: of the update that wrote weights, of the stage that had them loaded
    "digest": "digest_seconds",
    "export": "export_seconds",
    "load": "load_seconds",
    "reset": "load_reset_seconds",  # of the load
}


def weight_sync(manifests: Published) -> dict[str, float]:
    """Return the seconds that a policy's weights were on their way in these stages, by part; nothing where none was.

    Several loads (the policy of before for the rollout, the new one for an evaluation) are averaged.
    """
    found = {
        part: [manifest.metrics[name] for _, manifest in manifests if name in manifest.metrics]
        for part, name in SYNC.items()
    }
    return {part: fmean(seconds) for part, seconds in found.items() if seconds}


def prefix_cache(manifests: Published) -> dict[str, float]:
    """Return the share of the prompt tokens that the prefix cache had, by the name of the stage."""
    cached: dict[str, float] = {}
    asked: dict[str, float] = {}
    for stage, manifest in manifests:
        if manifest.metrics.get("prompt_tokens") and "cached_prompt_tokens" in manifest.metrics:
            name = stage.stage
            cached[name] = cached.get(name, 0.0) + manifest.metrics["cached_prompt_tokens"]
            asked[name] = asked.get(name, 0.0) + manifest.metrics["prompt_tokens"]
    return {name: cached[name] / asked[name] for name in asked}


def published(store: Store, stages: Iterable[AnyPlace]) -> Published:
    """Return the stages that are published, with their manifests."""
    return [(stage, manifest) for stage in stages if (manifest := store.find(stage.key)) is not None]


def figures_of_iteration(places: Iterable[AnyPlace], store: Store, iteration: int) -> dict[str, dict[str, float]]:
    """Return both for one iteration of a run."""
    found = published(store, [stage for stage in places if stage.iteration == iteration])
    return {"weight_sync": weight_sync(found), "prefix_cache": prefix_cache(found)}


def lines(figures: dict[str, dict[str, float]]) -> list[str]:
    """Return them as a person reads them; a line each, for what there is."""
    sync, cache = figures["weight_sync"], figures["prefix_cache"]
    told = []
    if sync:
        told.append("weight sync: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in sync.items()))
    if cache:
        told.append("prompt tokens from the prefix cache: " + ", ".join(f"{n} {s:.0%}" for n, s in cache.items()))
    return told
