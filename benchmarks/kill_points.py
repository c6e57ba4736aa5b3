"""Where kill_everywhere.py kills: points, drawn by a seed, in chains; a run is killed at each point of its chain.

A moment is found from outside, by watching what the run writes: nothing in the program knows that it is being tested.
The kill falls a few milliseconds later than it was meant, so where it really fell is read off the home afterwards.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import Store
from storage.plans import Plan, StagePlan

MOMENTS = ("in", "publish", "weights", "checkpoint", "after")  # in the order in which they come about in one stage
PER_CHAIN = 6
PATIENCE_S = 240
SAMPLING = ("rollout", "refine", "evaluate")
# target -> share of the points, the moments that it is killed at, the stages (None: all)
TARGETS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...] | None]] = {
    "flow": (30, ("in", "publish", "after"), None),
    "worker": (18, ("in", "publish"), None),
    "sampler": (10, ("in", "after"), SAMPLING),
    "trainer": (12, ("in", "weights", "checkpoint", "after"), ("update", "checkpoint")),
    "rank": (8, ("in", "weights", "checkpoint", "after"), ("update", "checkpoint")),
    "head": (6, ("in", "after"), None),
    "server": (6, ("in", "after"), None),
    "tree": (14, ("in", "publish", "weights", "checkpoint", "after"), None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One kill: of what, at which moment of which stage; `fraction` of the stage's usual seconds passes for "in"."""

    target: str
    moment: str
    stage: str  # the label of a stage in the plan, such as "rollout 1.0"
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The kills of one run, in the order of its plan."""

    number: int
    ranks: int
    points: tuple[Point, ...]


def draw_chains(plan: Plan, count: int, seed: int) -> list[Chain]:
    """Return chains of `count` points altogether; the last iteration and the setup are drawn from like the rest."""
    draw = random.Random(seed)
    labels = [stage.label for stage in plan.stages]
    whole = sum(share for share, _, _ in TARGETS.values())
    points: dict[int, list[Point]] = {1: [], 2: []}
    for target, (share, moments, stages) in TARGETS.items():
        for number in range(max(1, round(share * count / whole))):
            moment = moments[number % len(moments)]
            fits = [stage.label for stage in plan.stages if _fits(stage, moment, stages)]
            fraction = round(draw.random(), 2)
            point = Point(target=target, moment=moment, stage=draw.choice(fits), fraction=fraction)
            points[2 if target == "rank" or draw.random() < 0.15 else 1].append(point)
    chains = []
    for ranks, drawn in points.items():
        draw.shuffle(drawn)
        for start in range(0, len(drawn), PER_CHAIN):
            ordered = sorted(
                drawn[start : start + PER_CHAIN],
                key=lambda point: (labels.index(point.stage), MOMENTS.index(point.moment), point.fraction),
            )
            chains.append(Chain(number=len(chains), ranks=ranks, points=tuple(ordered)))
    return chains


def _fits(stage: StagePlan, moment: str, stages: tuple[str, ...] | None) -> bool:
    writer = {"weights": "update", "checkpoint": "checkpoint"}.get(moment, stage.stage)
    return stage.stage == writer and (stages is None or stage.stage in stages)


@dataclass(frozen=True, slots=True)
class Watch:
    """What can be seen of a run from outside: which stages are published, and what is being written."""

    home: Path
    plan: Plan
    usual_seconds: dict[str, float]

    def published(self, label: str) -> bool:
        """Tell whether a stage's manifest is there."""
        return (Store(self.home).path(self._stage(label).key) / "manifest.json").exists()

    def place(self) -> str:
        """Return the first stage that is not published, or "the end"."""
        return next((stage.label for stage in self.plan.stages if not self.published(stage.label)), "the end")

    def writing(self, prefix: str = "") -> list[str]:
        """Return the names below tmp that begin so: directories that are being written, or were when a kill fell."""
        try:
            return [name for name in os.listdir(self.home / "tmp") if name.startswith(prefix)]
        except FileNotFoundError:
            return []

    def wait_for(self, point: Point, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> bool:
        """Return True at the moment of a point when `ready` says that its target is there; False if the run ended."""
        reached, deadline = self._moment(point), time.monotonic() + PATIENCE_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{point} did not come about within {PATIENCE_S} s")
            if reached() and ready():
                return True
            time.sleep(0.002)
        return False

    def _moment(self, point: Point) -> Callable[[], bool]:
        stage = self._stage(point.stage)
        if point.moment == "after":
            return lambda: self.published(point.stage)
        if point.moment in ("publish", "weights", "checkpoint"):
            prefix = {"publish": stage.key, "weights": f"weights-{stage.key}"}.get(point.moment, "checkpoints-")
            return lambda: bool(self.writing(prefix)) or self.published(point.stage)
        before = self.plan.stages[: [one.label for one in self.plan.stages].index(point.stage)]
        wait, begun = self.usual_seconds.get(point.stage, 0.0) * point.fraction, list[float]()

        def in_the_stage() -> bool:
            if not begun and all(self.published(one.label) for one in before):
                begun.append(time.monotonic())
            return self.published(point.stage) or (bool(begun) and time.monotonic() >= begun[0] + wait)

        return in_the_stage

    def _stage(self, label: str) -> StagePlan:
        return next(stage for stage in self.plan.stages if stage.label == label)
