"""A query reads the views and nothing else: no file, no network, no setting, no variable of the program."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import storage_rows as rows_of
from storage_rows import a_manifest, a_plan, a_stage

from cgrpo_core.records import Response
from storage.artifacts import Store
from storage.catalog import open_catalog, query
from storage.errors import QueryFailed
from storage.runs import create_run

ROLLOUT = a_stage("rollout", {"responses": "Response"}, 1, 0)
REFUSED = {
    "read a csv": "SELECT * FROM read_csv('{home}/secret.csv')",
    "name a file": "SELECT * FROM '{home}/secret.csv'",
    "read text": "SELECT * FROM read_text('{home}/secret.csv')",
    "read bytes": "SELECT * FROM read_blob('{home}/secret.csv')",
    "read json": "SELECT * FROM read_json('{home}/secret.csv')",
    "read its own artifact": "SELECT * FROM read_parquet('{artifact}')",
    "name its own artifact": "SELECT * FROM '{artifact}'",
    "look into parquet": "SELECT * FROM parquet_metadata('{artifact}')",
    "list files": "SELECT * FROM glob('{home}/*')",
    "sniff": "SELECT * FROM sniff_csv('{home}/secret.csv')",
    "write a file": "COPY (SELECT 1) TO '{home}/written.csv'",
    "write parquet": "COPY responses TO '{home}/written.parquet' (FORMAT parquet)",
    "read by copy": "COPY runs FROM '{home}/secret.csv'",
    "attach a database": "ATTACH '{home}/written.db'",
    "export": "EXPORT DATABASE '{home}/written'",
    "import": "IMPORT DATABASE '{home}'",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "load a file": "LOAD '{home}/evil.duckdb_extension'",
    "fetch": "SELECT * FROM 'http://127.0.0.1:9/x.csv'",
    "fetch parquet": "SELECT * FROM read_parquet('https://127.0.0.1:9/x.parquet')",
    "fetch from s3": "SELECT * FROM read_csv('s3://bucket/x.csv')",
    "open up again": "SET enable_external_access = true",
    "unlock": "SET lock_configuration = false",
    "reset": "RESET lock_configuration",
    "allow variables": "SET python_enable_replacements = true",
    "spill elsewhere": "SET temp_directory = '{home}'",
    "profile into a file": "PRAGMA profiling_output = '{home}/written.json'",
    "log into a file": "CALL enable_logging(storage = 'file', storage_path = '{home}')",
    "read secrets": "SELECT * FROM duckdb_secrets()",
    "see a list of the program": "SELECT * FROM in_the_program",
    "see a table of the program": "SELECT * FROM arrow_in_the_program",
    "hide a write in an explain": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{home}/written.csv'",
    "hide a read in a query": "SELECT * FROM query('SELECT * FROM read_text(''{home}/secret.csv'')')",
}
in_the_program = [1, 2, 3]
arrow_in_the_program = pa.table({"secret": [1]})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret.csv").write_text("secret\n42\n")
    Store(tmp_path).publish(a_manifest(ROLLOUT.key), {"responses": (Response, [rows_of.a_response()])})
    create_run(tmp_path, name="one", plan=a_plan(ROLLOUT), options={})
    return tmp_path


def files(home: Path) -> set[str]:
    return {str(path) for path in home.rglob("*")}


@pytest.mark.parametrize("sql", REFUSED.values(), ids=REFUSED)
def test_a_query_cannot_reach_outside_the_views(home: Path, sql: str) -> None:
    arrow_in_the_program  # noqa: B018 - both are in reach of a replacement scan, were it allowed
    sql = sql.format(home=home, artifact=Store(home).path(ROLLOUT.key) / "responses.parquet")
    before = files(home)
    connection = open_catalog(home)
    with pytest.raises(duckdb.Error):
        connection.execute(sql).fetchall()
    assert connection.execute("SELECT text FROM responses").fetchall() == [("5",)]
    with pytest.raises(QueryFailed):
        query(home, sql)
    assert files(home) == before


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE kept AS SELECT 1",
        "DROP TABLE runs",
        "DELETE FROM stages",
        "INSERT INTO runs (run) VALUES ('x')",
        "UPDATE runs SET run = 'x'",
        "ATTACH ':memory:' AS other",
        "PREPARE x AS SELECT 1",
        "USE memory",
    ],
)
def test_a_query_does_nothing_but_read(home: Path, sql: str) -> None:
    before = files(home)
    with pytest.raises(QueryFailed, match="the store is read-only"):
        query(home, sql)
    connection = open_catalog(home)
    try:
        connection.execute(sql)
    except duckdb.Error:
        pass
    else:
        connection.close()
    assert query(home, "SELECT run FROM runs").rows == [("one",)], "what a connection changes ends with it"
    assert files(home) == before


@pytest.mark.parametrize(
    "sql", ["DESCRIBE responses", "SUMMARIZE stages", "SHOW TABLES", "EXPLAIN SELECT 1", "FROM runs"]
)
def test_looking_around_is_allowed(home: Path, sql: str) -> None:
    assert query(home, sql).rows
