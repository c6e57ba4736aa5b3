"""The decorator of a stage body: find the artifact of the key, or read the inputs, call the body and publish.

Published in the task body, never in a hook: a raising hook is only logged by Prefect. The key is an argument, computed
before submit. What a task returns to Prefect is a small artifact reference; records travel through the store.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from cgrpo_core.errors import UserError
from cgrpo_core.params import BLOCKS, build_block
from storage.artifacts import Manifest, Store
from storage.plans import StagePlan, stage_from_json
from storage.schemas import RECORDS
from tasks.versions import STAGE_VERSIONS

Block = TypeVar("Block")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a stage body returns: rows by output, counts of rows dropped or degraded, measurements, directories.

    evidence: what it saw for itself, in words and digests, such as the weights that its sampler served.
    """

    tables: Mapping[str, list[Any]]
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    directories: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage body knows besides its input records."""

    plan: StagePlan
    home: Path
    store: Store
    base_dir: str

    @property
    def key(self) -> str:
        """The key that the result will be published under."""
        return self.plan.key

    @property
    def seed(self) -> int:
        """The seed of the run; derive others from it with cgrpo_core.ids.derive_seed."""
        return int(self.plan.ingredients["seed"])

    @property
    def iteration(self) -> int:
        """The iteration, counted from 1; 0 in the setup section."""
        return self.plan.iteration or 0

    def block(self, block: type[Block]) -> Block:
        """Return a parameter block. Raises UserError if the stage does not name it: it would not be in its key."""
        name = next(name for name, known in BLOCKS.items() if known is block)
        if name not in self.plan.params:
            raise UserError(
                f"stage {self.plan.stage} reads the parameters {name!r}, which it does not declare",
                f"add {name} to the params of the stage {self.plan.stage} in pipelines.yaml",
            )
        built: Block = build_block(name, self.plan.params[name])
        return built


Body = Callable[..., Published]

BODIES: dict[str, Body] = {}  # by the path that pipelines.yaml uses, for whoever wants a body without its Prefect task


def stage(body: Body) -> Task[..., State[Any]]:
    """Return the Prefect task of a stage body. Its argument `upstream` only carries the edges of the graph."""
    path = f"{body.__module__}:{body.__name__}"
    if path not in STAGE_VERSIONS:
        raise KeyError(f"{path} has no version in tasks/versions.py")

    def run(plan: dict[str, Any], home: str, base_dir: str, upstream: list[Any]) -> State[Any]:
        declared = stage_from_json(plan)
        store = Store(Path(home))
        manifest = store.find(declared.key)
        if manifest is not None:
            return Completed(message="found in the store", name="Cached", data=reference(manifest))
        manifest = _publish(body, StageContext(declared, Path(home), store, base_dir))
        rows = sum(output["rows"] for output in manifest.outputs.values())
        return Completed(message=f"published {rows} rows", data=reference(manifest))

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    BODIES[path] = body
    decorate = task(name=body.__name__, persist_result=False, log_prints=False)
    return decorate(run)


def reference(manifest: Manifest) -> dict[str, Any]:
    """Return the artifact reference that Prefect keeps as the result of a stage."""
    rows = {name: {"record": output["record"], "rows": output["rows"]} for name, output in manifest.outputs.items()}
    return {"key": manifest.key, "stage": manifest.stage, "outputs": rows}


def _publish(body: Body, context: StageContext) -> Manifest:
    plan = context.plan
    started, began = time.time(), time.monotonic()
    arguments: dict[str, Any] = dict(plan.leaves)
    for argument, refs in plan.inputs.items():
        arguments[argument] = [row for ref in refs for row in _rows(context.store, ref.key, ref.output)]
    result = body(context, **arguments)
    tables = {name: (RECORDS[record], list(result.tables[name])) for name, record in plan.outputs.items()}
    draft = Manifest(
        key=plan.key,
        stage=plan.stage,
        task=plan.task,
        stage_version=STAGE_VERSIONS[plan.task],
        iteration=plan.iteration,
        chunk=plan.chunk,
        ingredients=plan.ingredients,
        params=plan.params,
        inputs={name: [f"{ref.key}/{ref.output}" for ref in refs] for name, refs in plan.inputs.items()},
        engine=plan.engine,
        outputs={},
        counts=dict(result.counts),
        metrics=dict(result.metrics),
        started_at=started,
        ended_at=started + time.monotonic() - began,  # never before the start, also when the clock was set back
        directories=dict(result.directories),
        evidence=dict(result.evidence),
    )
    return context.store.publish(draft, tables)


def _rows(store: Store, key: str, output: str) -> list[Any]:
    manifest = store.find(key)
    if manifest is None:
        raise UserError(
            f"the artifact {key[:12]} is no longer in the store", "run `cgrpo resume`: it makes what is missing"
        )
    rows: list[Any] = store.read(key, output, RECORDS[manifest.outputs[output]["record"]])
    return rows
