"""SQL over everything that was published: a view for each record, and `stages`, `runs`, `gates`, in a sealed DuckDB.

Each record view is a dataset over the list of published files, so that DuckDB reads only the columns and files that a
query needs. `run`, `iteration`, `chunk` and `stage` are not in the files, which several runs may share: they come from
the plans and are given to each file as a partition, so that a question about one iteration opens that iteration's
files only. A file that two runs share is seen once for each.

A query sees nothing else: no files, no network, no variables of the program, no settings.
"""

import re
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from cgrpo_core.leakage import reasoning
from storage.artifacts import Manifest, Store
from storage.compacted import Part, fresh_parts, manifest_states
from storage.errors import QueryFailed, QueryTimeout
from storage.gates import COLUMNS as GATE_COLUMNS
from storage.gates import list_gates
from storage.plans import AnyPlace, Place
from storage.runs import list_runs, open_run, read_places, state_of
from storage.schemas import RECORDS, arrow_schema
from storage.stage_rows import PLACE, STAGE_COLUMNS, TIME, as_time, stage_row

VIEWS: dict[str, str] = {
    "problems": "Problem",
    "rejected_rows": "RejectedRow",
    "prompts": "Prompt",
    "responses": "Response",
    "verdicts": "Verdict",
    "critiques": "Critique",
    "critique_attempts": "CritiqueAttempt",
    "refinements": "Refinement",
    "skipped_refinements": "SkippedRefinement",
    "selections": "SelectedRefinement",
    "solutions": "Solution",
    "training_samples": "TrainingSample",
    "policies": "Policy",
    "updates": "UpdateMetrics",
    "evaluations": "EvalResult",
    "benchmark_figures": "BenchmarkFigure",
}
_RUNS = pa.schema(
    [
        pa.field("run", pa.string()),
        pa.field("pipeline", pa.string()),
        pa.field("parent", pa.string()),
        pa.field("created_at", TIME),
        pa.field("state", pa.string()),
        pa.field("iteration", pa.int64()),
        pa.field("iterations", pa.int64()),
        pa.field("policy_version", pa.int64()),
        pa.field("weights_sha256", pa.string()),
        pa.field("stages_published", pa.int64()),
        pa.field("stages_total", pa.int64()),
        pa.field("error", pa.string()),
    ]
)
_JSON = ("counts", "metrics", "evidence")
_GATE_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_GATES = pa.schema([pa.field(name, _GATE_TYPES[kind]) for name, kind in GATE_COLUMNS.items()])
# The order matters: nothing can be set any more after the last one.
_SEAL = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET temp_directory = ''",  # a query too large for memory fails, rather than writing beside the program
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
GRACE_S = 2.0
_READING = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A stage in a run's plan, with its manifest if it is published."""

    run: str
    stage: AnyPlace
    manifest: Manifest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What a query returned: column names, and rows of plain Python values."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def open_catalog(home: Path, runs: list[str] | None = None) -> duckdb.DuckDBPyConnection:
    """Return a sealed connection in memory with the views over these runs, or over all.

    It shows what was published when it was opened. Raises RunNotFound for a name that is no run.
    """
    names = [run.name for run in list_runs(home)] if runs is None else [open_run(home, name).name for name in runs]
    places = {name: read_places(home, name) for name in names}
    states = manifest_states(home, {place.key for of_run in places.values() for place in of_run})
    copies = [part for name in names for part in fresh_parts(home, name, states)]
    copied: dict[str, set[str]] = {name: set() for name in names}
    for part in copies:
        copied[part.run].update(part.stage_keys())
    rest = {name: [place for place in places[name] if place.key not in copied[name]] for name in names}
    return _connect(
        home,
        _placed_stages(Store(Path(home)), rest),
        copies,
        runs=[_run_row(home, name, places[name], states) for name in names],
        gates=[row for name in names for row in list_gates(home, name)],
    )


def open_stages(home: Path, run: str, stages: Iterable[AnyPlace]) -> duckdb.DuckDBPyConnection:
    """Return a sealed connection with the views over these stages of a run alone; `runs` and `gates` are empty.

    For questions asked after each iteration: it reads as many manifests as there are stages, however long the run is.
    """
    return _connect(home, _placed_stages(Store(Path(home)), {run: stages}), [], runs=[], gates=[])


def _connect(
    home: Path, placed: list[_Placed], copies: list[Part], *, runs: list[dict[str, Any]], gates: list[dict[str, Any]]
) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    for view, name in VIEWS.items():
        connection.register(view, _dataset(Store(Path(home)), RECORDS[name], placed, copies))
    # Tables of DuckDB's own: small, and JSON gets its type, so that counts->>'truncated' works.
    tables = {
        "stages": _stage_table(placed, copies),
        "runs": pa.Table.from_pylist(runs, schema=_RUNS),
        "gates": pa.Table.from_pylist(gates, schema=_GATES),
    }
    for table, rows in tables.items():
        connection.register(f"{table}_arrow", rows)
        columns = f"* REPLACE ({', '.join(f'{name}::JSON AS {name}' for name in _JSON)})" if table == "stages" else "*"
        connection.execute(f"CREATE TABLE {table} AS SELECT {columns} FROM {table}_arrow")
        connection.unregister(f"{table}_arrow")
    connection.create_function("reasoning", reasoning, ["VARCHAR", "VARCHAR"], "VARCHAR")
    for statement in _SEAL:
        connection.execute(statement)
    return connection


def query(
    home: Path,
    sql: str,
    deadline_s: float = 60.0,
    runs: list[str] | None = None,
    overrun: Callable[[], None] | None = None,
) -> QueryResult:
    """Return the result of one SELECT (or WITH, DESCRIBE, SUMMARIZE, EXPLAIN) over the views.

    Raises QueryFailed with DuckDB's message and a hint, QueryTimeout if it was still at work after `deadline_s`
    seconds of its own, RunNotFound. A function over megabytes of text can keep DuckDB from seeing an interrupt for
    minutes: `overrun` is then called in another thread, GRACE_S later, and may end the process.
    """
    connection = open_catalog(home, runs)
    passed, ended = threading.Event(), threading.Event()

    def interrupt() -> None:
        passed.set()
        connection.interrupt()
        if overrun is not None and not ended.wait(GRACE_S):
            overrun()

    timer = threading.Timer(deadline_s, interrupt)
    try:
        statement = _only_statement(connection, sql)
        timer.start()
        relation = connection.execute(statement)
        columns = [column[0] for column in relation.description or []]
        return QueryResult(columns=columns, rows=relation.fetchall())
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if passed.is_set():
            raise QueryTimeout(
                f"interrupted after {deadline_s:g} s", "ask for one run or iteration, or allow more time"
            ) from error
        raise QueryFailed(str(error), _hint(str(error))) from error
    finally:
        ended.set()
        timer.cancel()
        if timer.ident is not None:
            timer.join()  # so that it cannot interrupt a closed connection
        connection.close()


def _only_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    if any("\ud800" <= character <= "\udfff" for character in sql):
        raise QueryFailed("the query is not valid Unicode", "stored text holds lone surrogates in an escaped form")
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type not in _READING:
        raise QueryFailed(
            "one SELECT at a time: the store is read-only", "SELECT, WITH, DESCRIBE, SUMMARIZE and EXPLAIN read"
        )
    return statements[0]


def _hint(message: str) -> str:
    names = [*VIEWS, "stages", "runs", "gates"]
    absent = re.search(r"Table with name \"?(\w+)\"? does not exist", message)
    near = get_close_matches(absent.group(1).lower(), names, n=1) if absent else []
    if near:
        return f"did you mean {near[0]}? DESCRIBE {near[0]} lists its columns"
    if "file system operations are disabled" in message or "disabled by configuration" in message:
        return "a query reads the views only, never files or the network: " + ", ".join(names)
    return f"views: {', '.join(names)}; DESCRIBE VIEW_NAME lists the columns"


def _placed_stages(store: Store, stages_of: Mapping[str, Iterable[AnyPlace]]) -> list[_Placed]:
    manifests: dict[str, Manifest | None] = {}  # shared stages are read once
    placed = []
    for name, stages in stages_of.items():
        for stage in stages:
            if stage.key not in manifests:
                manifests[stage.key] = store.find(stage.key)
            placed.append(_Placed(name, stage, manifests[stage.key]))
    return placed


def _stage_table(placed: list[_Placed], copies: list[Part]) -> pa.Table:
    rest = [stage_row(item.run, item.stage, item.manifest) for item in placed]
    copied = [part.stages.select(STAGE_COLUMNS.names).cast(STAGE_COLUMNS) for part in copies]
    return pa.concat_tables([*copied, pa.Table.from_pylist(rest, schema=STAGE_COLUMNS)])


def _dataset(store: Store, record: type, placed: list[_Placed], copies: list[Part]) -> ds.FileSystemDataset:
    """The published files of a record, each with its place as partition; a field called like a place gives way.

    In a compacted copy iteration and chunk are columns, and only run and stage are those of the file.
    """
    parquet, files = ds.ParquetFileFormat(), LocalFileSystem()
    taken = {field.name for field in PLACE}
    schema = pa.schema(PLACE + [field for field in arrow_schema(record) if field.name not in taken])
    found = [
        (str(path), (ds.field("run") == part.run) & (ds.field("stage") == stage))
        for part in copies
        for path, stage, name in part.tables()
        if name == record.__name__
    ]
    found += [
        (str(store.path(item.stage.key) / entry["file"]), _partition(item))
        for item in placed
        for entry in (item.manifest.outputs.values() if item.manifest else ())
        if entry["record"] == record.__name__
    ]
    fragments = [parquet.make_fragment(path, filesystem=files, partition_expression=where) for path, where in found]
    return ds.FileSystemDataset(fragments, schema, parquet, files)


def _partition(item: _Placed) -> ds.Expression:
    stage = item.stage
    values = {"run": item.run, "iteration": stage.iteration, "chunk": stage.chunk, "stage": stage.stage}
    terms = [ds.field(name).is_null() if value is None else ds.field(name) == value for name, value in values.items()]
    return terms[0] & terms[1] & terms[2] & terms[3]


def _run_row(home: Path, name: str, places: Sequence[Place], states: Container[str]) -> dict[str, Any]:
    run, state = open_run(home, name), asdict(state_of(home, name, places, states))
    state.pop("name")
    created = as_time(run.created_at)
    return {"run": name, "pipeline": run.pipeline, "parent": run.parent, "created_at": created, **state}
