"""Questions in SQL over what the runs published: records are joined by id, and placed by run, iteration and chunk."""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import storage_rows as rows_of
from storage_rows import a_manifest, a_plan, a_stage

from storage.artifacts import Store
from storage.catalog import VIEWS, open_catalog, query
from storage.errors import QueryFailed, QueryTimeout, RunNotFound
from storage.plans import StagePlan
from storage.runs import RunLock, create_run, end_attempt, start_attempt
from storage.schemas import RECORDS, arrow_schema

INIT = a_stage("init_policy", {"policy": "Policy"})
STAGES = {
    stage.stage: stage
    for stage in (
        a_stage("load_problems", {"problems": "Problem"}),
        INIT,
        a_stage("prompts", {"prompts": "Prompt"}, 1, 0),
        a_stage("rollout", {"responses": "Response"}, 1, 0),
        a_stage("verify", {"verdicts": "Verdict"}, 1, 0),
        a_stage("critique", {"critiques": "Critique"}, 1, 0),
        a_stage("refine", {"refinements": "Refinement"}, 1, 0),
        a_stage("verify_refinements", {"verdicts": "Verdict"}, 1, 0),
        a_stage("select", {"selection": "SelectedRefinement"}, 1, 0),
        a_stage("update", {"policy": "Policy", "metrics": "UpdateMetrics"}, 1),
        a_stage("evaluate", {"results": "EvalResult"}, 1),
    )
}


def publish(home: Path, stage: StagePlan, rows: dict[str, list[Any]], **changes: Any) -> None:
    tables = {name: (RECORDS[record], rows.get(name, [])) for name, record in stage.outputs.items()}
    place = {"stage": stage.stage, "iteration": stage.iteration, "chunk": stage.chunk}
    Store(home).publish(a_manifest(stage.key, **(place | changes)), tables)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two wrong responses and a right one; of two critiques one turned its wrong response into a right refinement."""
    texts = {"r1": "the answer is 5", "r2": "no idea", "r3": "4"}
    responses = [
        rows_of.a_response(response_id=name, text=text, index=i) for i, (name, text) in enumerate(texts.items())
    ]
    verdicts = [rows_of.a_verdict(subject_id=name, correct=name == "r3", reward=float(name == "r3")) for name in texts]
    critiques = [rows_of.a_critique(critique_id=f"c{i}", response_id=f"r{i}", text=f"remark {i}") for i in (1, 2)]
    refinements = [
        rows_of.a_refinement(refinement_id=f"f{i}", response_id=f"r{i}", critique_id=f"c{i}", text=text)
        for i, text in ((1, "still 5"), (2, "it is 4"))
    ]
    after = [rows_of.a_verdict(subject_id=f"f{i}", correct=i == 2, reward=float(i == 2)) for i in (2, 1)]
    rows: dict[str, dict[str, list[Any]]] = {
        "load_problems": {"problems": [rows_of.a_problem()]},
        "init_policy": {"policy": [rows_of.a_policy()]},
        "prompts": {"prompts": [rows_of.a_prompt(iteration=99)]},
        "rollout": {"responses": responses},
        "verify": {"verdicts": verdicts},
        "critique": {"critiques": critiques},
        "refine": {"refinements": refinements},
        "verify_refinements": {"verdicts": after},
        "select": {"selection": [rows_of.a_selection(refinement_id="f2")]},
        "update": {"policy": [rows_of.a_policy(policy_version=1)], "metrics": [rows_of.update_metrics()]},
    }
    for name, tables in rows.items():
        counts = {"finish_reason_length": 2} if name == "rollout" else {}
        publish(tmp_path, STAGES[name], tables, counts=counts, metrics={"tokens_per_second": 400.0})
    create_run(tmp_path, name="one", plan=a_plan(*STAGES.values()), options={})
    return tmp_path


def test_which_critique_turned_which_wrong_response_into_which_right_refinement(home: Path) -> None:
    result = query(
        home,
        """
        SELECT r.response_id, r.text AS response, c.critique_id, c.text AS critique,
            f.refinement_id, f.text AS refinement
        FROM critiques c
        JOIN responses r USING (run, response_id)
        JOIN verdicts before ON before.run = r.run AND before.subject_id = r.response_id
        JOIN refinements f ON f.run = c.run AND f.critique_id = c.critique_id
        JOIN verdicts after ON after.run = f.run AND after.subject_id = f.refinement_id
        WHERE NOT before.correct AND after.correct
        """,
    )
    assert result.columns == ["response_id", "response", "critique_id", "critique", "refinement_id", "refinement"]
    assert result.rows == [("r2", "no idea", "c2", "remark 2", "f2", "it is 4")]


def test_verdicts_on_responses_and_on_refinements_are_told_apart_by_stage(home: Path) -> None:
    result = query(home, "SELECT stage, count(*), sum(reward) FROM verdicts GROUP BY stage ORDER BY stage")
    assert result.rows == [("verify", 3, 1.0), ("verify_refinements", 2, 1.0)]


def test_each_view_has_its_place_first_and_then_the_fields_of_its_record(tmp_path: Path) -> None:
    for view, record in VIEWS.items():
        result = query(tmp_path, f"SELECT * FROM {view}")
        fields = [name for name in arrow_schema(RECORDS[record]).names if name != "iteration"]
        assert result.columns == ["run", "iteration", "chunk", "stage", *fields]
        assert result.rows == []
    assert query(tmp_path, "SELECT count(*) FROM stages").rows == [(0,)]
    assert query(tmp_path, "SELECT count(*) FROM runs").rows == [(0,)]
    assert sorted(VIEWS.values()) == sorted(RECORDS)


def test_a_row_is_placed_by_the_plan(home: Path) -> None:
    assert query(home, "SELECT run, iteration, chunk, stage FROM prompts").rows == [("one", 1, 0, "prompts")]
    assert query(home, "SELECT run, iteration, chunk, stage FROM problems").rows == [
        ("one", None, None, "load_problems")
    ]
    assert query(home, "SELECT iteration, chunk, policy_version FROM policies ORDER BY ALL").rows == [
        (1, None, 1),
        (None, None, 0),
    ]
    assert query(home, "SELECT count(*) FROM policies WHERE iteration IS NULL").rows == [(1,)]


def test_an_artifact_of_two_runs_is_seen_once_for_each(home: Path) -> None:
    create_run(home, name="two", plan=a_plan(*STAGES.values()), options={}, parent="one")
    counted = "SELECT run, count(*) FROM responses GROUP BY run ORDER BY run"
    assert query(home, counted).rows == [("one", 3), ("two", 3)]
    assert query(home, counted, runs=["two"]).rows == [("two", 3)]
    assert query(home, "SELECT run, parent FROM runs ORDER BY run").rows == [("one", None), ("two", "one")]
    with pytest.raises(RunNotFound):
        query(home, counted, runs=["three"])


def test_stages_show_what_is_published_how_long_it_took_and_what_was_counted(home: Path) -> None:
    result = query(
        home,
        """SELECT section, key, published, started_at, seconds, rows, counts->>'finish_reason_length',
        CAST(metrics->'tokens_per_second' AS DOUBLE) FROM stages WHERE stage = 'rollout'""",
    )
    started = datetime(1970, 1, 1, 0, 1, 40)
    assert result.rows == [("explore", STAGES["rollout"].key, True, started, 2.5, 3, "2", 400.0)]
    absent = query(home, "SELECT stage, section, started_at, rows, counts FROM stages WHERE NOT published")
    assert absent.rows == [("evaluate", "learn", None, None, None)]


def test_runs_show_their_state(home: Path) -> None:
    with RunLock(home, "one"):
        end_attempt(home, "one", start_attempt(home, "one"), "failed", "no room")
    columns = "state, iteration, iterations, policy_version, stages_published, stages_total, error"
    assert query(home, f"SELECT {columns} FROM runs").rows == [("failed", 1, 1, 1, 10, 11, "no room")]


def test_lists_and_hostile_text_reach_sql(home: Path) -> None:
    create_run(home, name="text", plan=a_plan(a_stage("rollout", {"responses": "Response"}, 2, 0)), options={})
    text = "a\0b'; DROP TABLE runs; --<b>\ud83d"
    publish(home, a_stage("rollout", {"responses": "Response"}, 2, 0), {"responses": [rows_of.a_response(text=text)]})
    result = query(home, "SELECT text, token_ids, sampling_logprobs[1] FROM responses WHERE run = 'text'")
    assert result.rows == [(text.replace("\ud83d", "\ufdd0D83D"), [7, 2], -0.5)]
    assert query(home, "SELECT count(*) FROM responses WHERE text LIKE 'a' || chr(0) || 'b''; DROP%'").rows == [(1,)]


def test_a_question_about_one_iteration_opens_no_other_file_and_a_lost_file_is_an_error(home: Path) -> None:
    stages = [a_stage("rollout", {"responses": "Response"}, i, 0) for i in (2, 3)]
    for stage in stages:
        publish(home, stage, {"responses": [rows_of.a_response(response_id=f"r{stage.iteration}")]})
    create_run(home, name="long", plan=a_plan(*stages), options={})
    lost = Store(home).path(stages[1].key) / "responses.parquet"
    lost.unlink()
    found = query(home, "SELECT response_id FROM responses WHERE iteration = 2 AND run = 'long'")
    assert found.rows == [("r2",)]
    with pytest.raises(QueryFailed) as caught:
        query(home, "SELECT response_id FROM responses WHERE run = 'long'")
    assert str(lost) in str(caught.value)


def test_a_catalog_shows_what_was_published_when_it_was_opened(home: Path) -> None:
    connection = open_catalog(home)
    publish(home, STAGES["evaluate"], {"results": [rows_of.an_eval_result()]})
    assert connection.execute("SELECT count(*) FROM evaluations").fetchall() == [(0,)]
    assert query(home, "SELECT correct FROM evaluations").rows == [(True,)]


@pytest.mark.parametrize(
    ("sql", "message", "hint"),
    [
        ("SELECT * FROM response", "does not exist", "did you mean responses?"),
        ("SELECT * FROM anything", "does not exist", "views: problems, rejected_rows"),
        ("SELECT nothing FROM responses", "nothing", "DESCRIBE"),
        ("SELEC 1", "syntax error", "views:"),
        ("", "one SELECT at a time", ""),
        ("SELECT 1; SELECT 2", "one SELECT at a time", ""),
        ("SELECT ?", "parameters", ""),
        ("SELECT '\ud800'", "not valid Unicode", ""),
        ("SELECT CAST('x' AS INTEGER)", "Could not convert", ""),
    ],
)
def test_a_query_that_cannot_be_answered_says_why(home: Path, sql: str, message: str, hint: str) -> None:
    with pytest.raises(QueryFailed) as caught:
        query(home, sql)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000000) a, range(1000) b WHERE a.range * b.range % 7 = 3",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT count(reasoning('1 + 1 = ' || range, '3')) FROM range(100000000)",
        "SELECT count(*) FROM (SELECT range, random() AS r FROM range(10000000000) ORDER BY r)",
    ],
)
def test_a_query_is_interrupted_at_its_deadline(tmp_path: Path, sql: str) -> None:
    with pytest.raises(QueryTimeout, match=r"interrupted after 0\.2 s"):
        query(tmp_path, sql, 0.2)


def test_a_single_value_that_heeds_no_interrupt_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.catalog.GRACE_S", 0.05)
    told: list[str] = []
    with suppress(QueryTimeout):
        query(
            tmp_path,
            "SELECT levenshtein(repeat('ab', 15000), repeat('ba', 15000))",
            0.05,
            None,
            lambda: told.append("x"),
        )
    assert told == ["x"]


def test_the_command_ends_soon_after_a_deadline_that_a_single_value_does_not_heed(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "cgrpo"), "sql"),
            *("SELECT levenshtein(repeat('ab', 400000), repeat('ba', 400000))", "--deadline", "0.2"),
        ],
        env={**os.environ, "CGRPO_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "deadline of 0.2 s" in done.stderr
    assert "--deadline" in done.stderr
