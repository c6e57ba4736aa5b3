"""The view `stages`: a row for each stage of a plan, from its manifest where it is published."""

from datetime import UTC, datetime
from json import dumps
from typing import Any

import pyarrow as pa

from storage.artifacts import Manifest
from storage.plans import AnyPlace

PLACE = [
    pa.field("run", pa.string()),
    pa.field("iteration", pa.int64()),
    pa.field("chunk", pa.int64()),
    pa.field("stage", pa.string()),
]
TIME = pa.timestamp("us")  # UTC without a zone: DuckDB needs another package to hand out times with one
STAGE_COLUMNS = pa.schema(
    [
        *PLACE,
        pa.field("section", pa.string()),
        pa.field("task", pa.string()),
        pa.field("key", pa.string()),
        pa.field("published", pa.bool_()),
        pa.field("started_at", TIME),
        pa.field("ended_at", TIME),
        pa.field("seconds", pa.float64()),
        pa.field("rows", pa.int64()),
        pa.field("counts", pa.string()),
        pa.field("metrics", pa.string()),
        pa.field("evidence", pa.string()),
    ]
)


def stage_row(run: str, stage: AnyPlace, manifest: Manifest | None) -> dict[str, Any]:
    """Return the row of a stage of a run; what only a manifest knows is absent without one."""
    row: dict[str, Any] = {
        "run": run,
        "iteration": stage.iteration,
        "chunk": stage.chunk,
        "stage": stage.stage,
        "section": stage.section,
        "task": stage.task,
        "key": stage.key,
        "published": manifest is not None,
    }
    if manifest is not None:
        row |= {
            "started_at": as_time(manifest.started_at),
            "ended_at": as_time(manifest.ended_at),
            "seconds": manifest.ended_at - manifest.started_at,
            "rows": sum(entry["rows"] for entry in manifest.outputs.values()),
            "counts": dumps(manifest.counts),
            "metrics": dumps(manifest.metrics),
            "evidence": dumps(manifest.evidence),
        }
    return row


def as_time(seconds: float) -> datetime:
    """Return Unix seconds as UTC without a zone, as the views have it."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
