"""The plan of a run as plain values: every stage of every iteration, with its key. Frozen with the run, as JSON."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

Section = Literal["setup", "explore", "learn", "evaluate"]  # the last: an evaluation, a run of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRef:
    """One output of an earlier stage."""

    key: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of one iteration and chunk: what it reads, what it is called with, and the key of its result.

    inputs: argument -> references, in chunk order. leaves: argument -> declaration of an input of the run (data set or
    model), with its identity under `identity`. params: block -> values, complete. engine: the declaration of the bound
    engine with its name under `name`, or None. outputs: output name -> record class name.
    """

    stage: str
    task: str
    section: Section
    iteration: int | None
    chunk: int | None
    key: str
    ingredients: dict[str, Any]
    inputs: dict[str, tuple[InputRef, ...]]
    leaves: dict[str, dict[str, Any]]
    outputs: dict[str, str]
    params: dict[str, dict[str, Any]]
    engine: dict[str, Any] | None
    retries: int
    resources: dict[str, float]

    @property
    def label(self) -> str:
        """A readable name: `rollout 3.0` is chunk 0 of iteration 3."""
        place = [str(part) for part in (self.iteration, self.chunk) if part is not None]
        return " ".join([self.stage, ".".join(place)]).strip()


@dataclass(frozen=True, slots=True)
class Place:
    """What a stage is called, where it stands and what it publishes: enough to find and read it.

    engine: name, kind and resources of the bound engine, or None.
    """

    stage: str
    task: str
    section: Section
    iteration: int | None
    chunk: int | None
    key: str
    outputs: dict[str, str]
    engine: dict[str, Any] | None


AnyPlace = Place | StagePlan  # either one does, where a stage is only found and read


def place_of(stage: StagePlan) -> Place:
    """Return the place of a stage."""
    engine = stage.engine and {name: stage.engine.get(name) for name in ("name", "kind", "resources")}
    return Place(stage.stage, stage.task, stage.section, stage.iteration, stage.chunk, stage.key, stage.outputs, engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All stages of a run in an order in which they could run one after the other."""

    pipeline: str
    config: dict[str, Any]  # the resolved declaration: inputs, engines, params, pipeline
    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Plan":
        """Return the plan that `to_json` gave. Raises KeyError or TypeError on anything else."""
        return Plan(
            pipeline=value["pipeline"],
            config=value["config"],
            stages=tuple(stage_from_json(item) for item in value["stages"]),
        )


def stage_from_json(value: dict[str, Any]) -> StagePlan:
    """Return the stage of a plan from plain JSON values."""
    inputs = {name: tuple(InputRef(**ref) for ref in refs) for name, refs in value["inputs"].items()}
    return StagePlan(**{**value, "inputs": inputs})


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the collector of cycles from running in the block.

    Parsed JSON has no cycles, and to look for them in a million new objects, again and again as they become more, takes
    three quarters of the time of reading a long plan.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
