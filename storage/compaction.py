"""Compaction: the complete iterations of a run are copied from their many small files into a few large ones.

Nothing of the artifacts is changed or removed: the copy is a cache that questions read (compacted.py). Each row names
the artifact that it is a copy of, and each stage the sha256 of the manifest that was there. A part is published like
weights, whole or not at all, and never changed after that; a kill leaves what was there before and a leftover in tmp.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifacts import MANIFEST, Manifest, Store, checked_bytes, parquet_options
from storage.attempts import HomeLock, run_directory
from storage.compacted import (
    PLACES,
    ROOM,
    STAGES,
    STAMP,
    manifest_states,
    parts_of,
    run_identity,
)
from storage.disk import disk_faults_named
from storage.durable import move_into_place, new_temporary, take_away
from storage.journal import Entry, append, file_sha256
from storage.plans import Place, StagePlan, place_of
from storage.policies import DIGESTS, write_digests
from storage.runs import open_run, read_plan
from storage.schemas import RECORDS, arrow_schema
from storage.stage_rows import STAGE_COLUMNS, stage_row

GROUP_ROWS, GROUP_BYTES = 122_880, 64 * 2**20  # of a row group, whichever is reached first: DuckDB reads these well
_PLACE = [pa.field("iteration", pa.int64()), pa.field("chunk", pa.int64())]
_MADE_FROM = [
    pa.field("manifest_sha256", pa.string()),
    pa.field("manifest_bytes", pa.int64()),
    pa.field("manifest_changed_ns", pa.int64()),
]
_PLACES = pa.schema(
    [pa.field(name, pa.string()) for name in ("stage", "task", "section", "key", "outputs", "engine")] + _PLACE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What a compaction did. first..last: the iterations that it copied, or None if there was nothing to copy.

    stale: parts of before that were removed, as what they were made from has changed since.
    """

    run: str
    iterations: tuple[int, int] | None
    stages: int
    files: int
    rows: int
    bytes_before: int
    bytes: int
    stale: int


@dataclass(frozen=True, slots=True)
class _Source:
    stage: StagePlan
    manifest: Manifest


def compact(home: Path, name: str | None, say: Callable[[str], None]) -> Compaction:
    """Copy the iterations that are complete and not copied yet; 0, the setup, is one of them.

    Raises RunNotFound, RunBusy while `cgrpo gc` cleans up, and ArtifactCorrupt for a file that is not what was
    published: what is damaged is never copied.
    """
    run = open_run(home, name).name
    with HomeLock(home), disk_faults_named(home):
        stages = read_plan(home, run).stages
        stale = _drop_stale(home, run)
        parts = parts_of(home, run)
        first = parts[-1].last + 1 if parts else 0
        sources = _complete(Store(home), stages, first)
        if not sources:
            return Compaction(
                run=run, iterations=None, stages=0, files=0, rows=0, bytes_before=0, bytes=0, stale=len(stale)
            )
        last = sources[-1].stage.iteration or 0
        say(f"{len(sources)} stages of the iterations {first} to {last}")
        part = _write_part(home, run, first, last, sources)
        _drop_overlapped(home, run, part)
    return _figures(part, first, sources, len(stale))


def _drop_stale(home: Path, run: str) -> list[Path]:
    """Remove the parts from the first one on whose artifacts are no longer those that it was made from."""
    parts = parts_of(home, run)
    states = manifest_states(home, [key for part in parts for key in part.stage_keys()])
    fresh = [part.is_fresh(states) for part in parts]
    stale = [part.path for part in parts[fresh.index(False) :]] if False in fresh else []
    return [path for path in stale if take_away(home, path)]


def _drop_overlapped(home: Path, run: str, part: Path) -> None:
    """Remove what the chain of parts no longer reaches, such as one that begins within another."""
    used = {one.path for one in parts_of(home, run)}
    if part in used:
        for path in sorted((home / ROOM / run).iterdir()):
            if path not in used:
                take_away(home, path)


def _complete(store: Store, stages: tuple[StagePlan, ...], first: int) -> list[_Source]:
    """Return the stages of the iterations from `first` on, up to the first iteration that is not all published."""
    by_iteration: dict[int, list[StagePlan]] = {}
    for stage in stages:
        by_iteration.setdefault(stage.iteration or 0, []).append(stage)
    found: list[_Source] = []
    for iteration in sorted(by_iteration):
        if iteration < first:
            continue
        manifests = [store.find(stage.key) for stage in by_iteration[iteration]]
        if None in manifests:
            break
        pairs = zip(by_iteration[iteration], manifests, strict=True)
        found += [_Source(stage, manifest) for stage, manifest in pairs if manifest is not None]
    return found


def _write_part(home: Path, run: str, first: int, last: int, sources: list[_Source]) -> Path:
    """Publish a part, and put the digest of its list of files into the journal of the run."""
    name = f"{first:06d}-{last:06d}"
    temporary, final = new_temporary(home, f"compacted-{run}-{name}"), home / ROOM / run / name
    try:
        stamp: dict[str, Any] = {"run": run_identity(home, run), "tables": []}
        for stage, output, record in dict.fromkeys(_tables(sources)):
            file = f"{stage}.{output}.{record}.parquet"
            if _write_table(home, temporary / file, stage, output, record, sources):
                stamp["tables"].append([file, stage, record])
        pq.write_table(_stamped(_stage_table(home, run, sources), stamp), temporary / STAGES, compression="zstd")
        pq.write_table(_stamped(_place_table(home, run), stamp), temporary / PLACES, compression="zstd")
        write_digests(temporary)
        listing = Entry(kind="directory", name=f"{ROOM}/{run}/{name}", sha256=file_sha256(temporary / DIGESTS))
        append(run_directory(home, run), [listing])
        if not move_into_place(temporary, final):
            take_away(home, final)  # of another plan, or one that lost its list of files: it was not in the chain
            move_into_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was moved into place
    return final


def _tables(sources: list[_Source]) -> Iterator[tuple[str, str, str]]:
    for source in sources:
        for output, entry in source.manifest.outputs.items():
            if entry["record"] in RECORDS:
                yield source.stage.stage, output, entry["record"]


def _write_table(home: Path, path: Path, stage: str, output: str, record: str, sources: list[_Source]) -> int:
    """Write the rows of one output of one stage over all iterations; return how many. Memory is that of a row group."""
    taken = {field.name for field in _PLACE}
    fields = [field.with_nullable(True) for field in arrow_schema(RECORDS[record]) if field.name not in taken]
    schema = pa.schema([pa.field("artifact", pa.string()), *_PLACE, *fields])
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd", **parquet_options(RECORDS[record])) as writer:
        for group in _row_groups(home, stage, output, record, sources, schema):
            writer.write_table(group, row_group_size=GROUP_ROWS)
            written += len(group)
    if not written:
        path.unlink()
    return written


def _row_groups(
    home: Path, stage: str, output: str, record: str, sources: list[_Source], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield the rows of one output of one stage, in plan order and in tables of the size of a row group."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for source in sources:
        entry = source.manifest.outputs.get(output)
        if source.stage.stage != stage or entry is None or entry["record"] != record or not entry["rows"]:
            continue
        file = Store(home).path(source.stage.key) / entry["file"]
        content = pa.BufferReader(checked_bytes(file, entry))
        waiting.append(_placed(pq.ParquetFile(content).read(use_threads=False), source.stage, schema))
        rows, size = rows + entry["rows"], size + waiting[-1].nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def _placed(table: pa.Table, stage: StagePlan, schema: pa.Schema) -> pa.Table:
    """Return the rows of an artifact with their place; a column that records have gained since is null."""
    known: dict[str, pa.Array] = {name: table.column(name) for name in table.column_names}
    known |= {field.name: pa.repeat(pa.scalar(getattr(stage, field.name), field.type), len(table)) for field in _PLACE}
    known["artifact"] = pa.repeat(stage.key, len(table))
    absent = {field.name: pa.nulls(len(table), field.type) for field in schema if field.name not in known}
    return pa.Table.from_arrays([(known | absent)[name] for name in schema.names], schema=schema)


def _stage_table(home: Path, run: str, sources: list[_Source]) -> pa.Table:
    states = manifest_states(home, [source.stage.key for source in sources])
    rows = []
    for source in sources:
        size, changed = states[source.stage.key]
        sha256 = hashlib.sha256((Store(home).path(source.stage.key) / MANIFEST).read_bytes()).hexdigest()
        made_from = {"manifest_sha256": sha256, "manifest_bytes": size, "manifest_changed_ns": changed}
        rows.append(stage_row(run, source.stage, source.manifest) | made_from)
    return pa.Table.from_pylist(rows, schema=pa.schema([*STAGE_COLUMNS, *_MADE_FROM]))


def _place_table(home: Path, run: str) -> pa.Table:
    return pa.Table.from_pylist([_place_row(place_of(stage)) for stage in read_plan(home, run).stages], schema=_PLACES)


def _place_row(place: Place) -> dict[str, Any]:
    row = {name: getattr(place, name) for name in _PLACES.names}
    return row | {name: json.dumps(row[name], sort_keys=True) for name in ("outputs", "engine")}


def _stamped(table: pa.Table, stamp: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({STAMP: json.dumps(stamp)})


def _figures(path: Path, first: int, sources: list[_Source], stale: int) -> Compaction:
    entries = [entry for source in sources for entry in source.manifest.outputs.values()]
    return Compaction(
        run=path.parent.name,
        iterations=(first, sources[-1].stage.iteration or 0),
        stages=len(sources),
        files=len(entries),
        rows=sum(entry["rows"] for entry in entries),
        bytes_before=sum(entry["bytes"] for entry in entries),
        bytes=sum(one.stat().st_size for one in path.iterdir()),
        stale=stale,
    )
