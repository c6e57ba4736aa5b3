"""Updates taken again: the stored samples of each, in order, through a trainer of its own that nothing else uses.

A CPU, and one GPU with deterministic kernels, must give every published digest again. Elsewhere sums may be added up in
another order; then the distance is what can be said, where the published weights are still on disk.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cgrpo_core.records import UpdateMetrics
from cgrpo_core.weights import WeightsDistance, weights_distance
from storage.artifacts import Store
from storage.durable import new_temporary, take_away
from storage.plans import StagePlan
from storage.policies import complete
from tasks.engines.protocol import PolicyRef, Trainer, UpdateReport
from tasks.models import resolve_model
from tasks.policies import bring_to, policy_ref, read_policy, stored_request

Verdict = Literal["equal", "within", "beyond", "unmeasured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedUpdate:
    """One update taken again. published, replayed: digests of the weights.

    verdict: equal digests; or the relative distance is within the tolerance, or beyond it; or unmeasured, because the
    published weights are on disk no more. max_abs, relative: as WeightsDistance. losses: of the optimizer steps, mean.
    """

    iteration: int
    policy_version: int
    published: str
    replayed: str
    verdict: Verdict
    max_abs: float | None
    relative: float | None
    published_loss: float
    replayed_loss: float
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the weights are the published ones, bit by bit."""
        return self.verdict == "equal"


def is_update(stage: StagePlan) -> bool:
    """Tell whether a stage takes optimizer steps over stored training samples."""
    return {"Policy", "UpdateMetrics"} <= set(stage.outputs.values()) and {"samples", "policy"} <= set(stage.inputs)


def size_of(home: Path, stages: Sequence[StagePlan]) -> tuple[int, int, float]:
    """Return samples, trained-on completion tokens and seconds of updates, as they said themselves."""
    done = [_metrics(Store(home), stage) for stage in stages]
    tokens = sum(one.response_tokens + one.refinement_tokens + one.solution_tokens for one in done)
    return sum(one.samples for one in done), tokens, sum(one.seconds for one in done)


def replay_updates(
    home: Path, base_dir: Path, stages: Sequence[StagePlan], tolerance: float, progress: Callable[[str], None]
) -> Iterator[ReplayedUpdate]:
    """Yield each update taken again, from the policy before the first of `stages`; ends after one beyond tolerance.

    A policy that has no checkpoint is reached by a replay too, which must be exact: raises ReplayDiverged.
    """
    first = stages[0]
    assert first.engine is not None
    base = resolve_model(first.engine["model"], home, base_dir)
    parent_key = first.inputs["policy"][0].key
    with own_trainer(first.engine, base) as trainer:
        progress(f"bringing a trainer to the policy before iteration {first.iteration}")
        bring_to(home, trainer, parent_key, base)
        held = policy_ref(read_policy(Store(home), parent_key).policy)
        for stage in stages:
            report = trainer.update(stored_request(Store(home), read_policy(Store(home), stage.key).manifest), held)
            held = report.policy
            equal = held == policy_ref(read_policy(Store(home), stage.key).policy)
            distance = None if equal else _distance(home, base, trainer, stage.key, held)
            done = _compared(home, stage, report, distance, tolerance)
            yield done
            if done.verdict == "beyond" or (done.verdict == "unmeasured" and not tolerance):
                return


def _compared(
    home: Path, stage: StagePlan, report: UpdateReport, distance: WeightsDistance | None, tolerance: float
) -> ReplayedUpdate:
    published = read_policy(Store(home), stage.key).policy
    verdict: Verdict = "unmeasured"
    if report.policy == policy_ref(published):
        verdict = "equal"
    elif distance is not None:  # a tolerance of 0 asks for equal digests: equal numbers of another dtype are not
        verdict = "within" if tolerance > 0 and distance.relative <= tolerance else "beyond"
    assert stage.iteration is not None
    return ReplayedUpdate(
        iteration=stage.iteration,
        policy_version=published.policy_version,
        published=published.weights_sha256,
        replayed=report.policy.weights_sha256,
        verdict=verdict,
        max_abs=distance.max_abs if distance else None,
        relative=distance.relative if distance else None,
        published_loss=_metrics(Store(home), stage).loss,
        replayed_loss=report.loss,
        seconds=report.seconds,
    )


def _distance(home: Path, base: Path, trainer: Trainer, key: str, held: PolicyRef) -> WeightsDistance | None:
    """Return how far the weights held are from the published ones, or None if those are on disk no more."""
    from tasks.engines.export import read_model

    there = (home / kind / key for kind in ("weights", "checkpoints") if complete(home, f"{kind}/{key}"))
    published = next(there, None)
    if published is None:
        return None
    directory = new_temporary(home, f"replay-{key}")
    try:
        trainer.export_weights(str(directory), held)
        return weights_distance(read_model(directory), read_model(published), read_model(base))
    finally:
        take_away(home, directory)


@contextmanager
def own_trainer(declaration: dict[str, Any], base: Path) -> Iterator[Any]:
    """Yield a trainer that no run knows the name of, and end it after: the run's own keeps its policy."""
    from tasks.engines.deepspeed_trainer import start_trainer

    name = f"apart-{uuid.uuid4().hex[:12]}"
    trainer = start_trainer(name, declaration, str(base), False)
    try:
        yield trainer
    finally:
        trainer.kill()


def _metrics(store: Store, stage: StagePlan) -> UpdateMetrics:
    output = next(name for name, record in stage.outputs.items() if record == "UpdateMetrics")
    return store.read(stage.key, output, UpdateMetrics)[0]
