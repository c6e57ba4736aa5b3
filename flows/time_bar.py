"""Where an iteration's time went, from the times that its manifests hold: each moment belongs to what is then at work.

Stages overlap. A moment at which an engine works is that engine's, whatever else goes on beside it; what is left is
verification, waiting for critiques, other stages, and last what passes between stages: publishing, Ray and Prefect.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from storage.artifacts import Manifest, Store
from storage.plans import AnyPlace

ENGINES = {"vllm": "sampling", "deepspeed": "training", "openai": "critique"}
PARTS = (
    "sampling",
    "training",
    "weight sync",
    "critique",
    "verification",
    "other stages",
    "between stages",
)  # first come, first named
WIDTH = 40

Span = tuple[float, float, str]


def part_of(stage: AnyPlace) -> str:
    """Return which of PARTS a stage's time belongs to."""
    if stage.task.startswith("tasks.critique:"):
        return "critique"
    if stage.engine is not None:
        return ENGINES.get(stage.engine["kind"], "other stages")
    return "verification" if stage.task.startswith("tasks.verify:") else "other stages"


def spans_of(stage: AnyPlace, manifest: Manifest) -> Iterator[Span]:
    """Yield what a stage was at, from when to when: an engine loads weights before it works, or writes them after."""
    start, end, metrics = manifest.started_at, manifest.ended_at, manifest.metrics
    if "load_seconds" in metrics:
        leased = min(end, start + metrics["lease_seconds"])
        yield max(start, leased - metrics["load_seconds"]), leased, "weight sync"
        yield start, max(start, leased - metrics["load_seconds"]), part_of(stage)
        start = leased
    if "export_seconds" in metrics:
        exporting = max(start, end - metrics["export_seconds"])
        yield exporting, end, "weight sync"
        end = exporting
    yield start, end, part_of(stage)


def shares(spans: Iterable[Span]) -> dict[str, float]:
    """Return the seconds of each part from the first start to the last end; they add up to that."""
    known = [span for span in spans if span[1] > span[0]]
    if not known:
        return {}
    marks = sorted({moment for start, end, _ in known for moment in (start, end)})
    seconds = dict.fromkeys(PARTS, 0.0)
    for start, end in pairwise(marks):
        at_work = {part for began, ended, part in known if began <= start and ended >= end}
        seconds[next((part for part in PARTS if part in at_work), "between stages")] += end - start
    return seconds


def last_iteration(places: Sequence[AnyPlace], store: Store) -> tuple[int, dict[str, float]] | None:
    """Return the newest iteration all of whose stages are published, and the seconds of its parts."""
    by_iteration: dict[int, list[AnyPlace]] = {}
    for place in places:
        if place.iteration is not None:
            by_iteration.setdefault(place.iteration, []).append(place)
    for iteration in sorted(by_iteration, reverse=True):
        if all(store.has(place.key) for place in by_iteration[iteration]):
            found = [(place, store.find(place.key)) for place in by_iteration[iteration]]
            return iteration, shares(
                span for place, manifest in found if manifest for span in spans_of(place, manifest)
            )
    return None


def draw(seconds: Mapping[str, float]) -> list[str]:
    """Return a line a part: name, seconds, share, and a bar of up to WIDTH characters."""
    total = sum(seconds.values()) or 1.0
    return [
        f"{part:<15} {spent:>8.1f} s {spent / total:>6.1%} {'█' * round(WIDTH * spent / total)}".rstrip()
        for part, spent in seconds.items()
        if spent
    ]
