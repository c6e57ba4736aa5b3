"""Why a stage has its key, where two runs part, and what then differs in what they published."""

import json
from pathlib import Path

import pytest
from published_runs import fork_of, make_run, plan_of, publish_all, rerun_of

from cgrpo_core.errors import UserError
from flows.changes import ABSENT, by_key, compare, first_cause, own
from flows.derive import places
from flows.diff import diff
from flows.diff_report import print_diff
from flows.explain import explain

PARENT = plan_of()


def stage(plan, name: str, iteration: int | None = None):
    return next(one for one in plan.stages if one.stage == name and one.iteration == iteration)


def test_the_first_cause_of_another_policy_is_the_critique_that_was_set() -> None:
    other = rerun_of(PARENT, "critique", "critique.kind=indicative")
    cause = first_cause(stage(PARENT, "update", 2), stage(other, "update", 2), by_key(PARENT), by_key(other))
    assert cause.path[0] == "critique 1.0"
    assert cause.path[-1] == "update 2"
    assert [change.text() for change in cause.changes] == ["critique.kind: 'indicative_gt' -> 'indicative'"]


def test_every_kind_of_ingredient_has_its_word() -> None:
    one = stage(PARENT, "rollout", 1).ingredients
    other = {
        **one,
        "stage_version": 2,
        "salt": "s",
        "seed": 5,
        "record_schemas": {"responses": "another"},
        "params": {"rollout": {**one["params"]["rollout"], "top_p": 0.9, "new": 1}},
        "engine": {**one["engine"], "dtype": "bfloat16"},
        "inputs": {**one["inputs"], "policy": ["0/policy"], "prompts": [*one["inputs"]["prompts"], "1/prompts"]},
    }
    changes = {change.kind: change for change in compare(one, other)}
    assert set(changes) == {"version", "salt", "seed", "schema", "params", "engine", "input", "chunks"}
    assert changes["version"].text() == "version: 1 -> 2"
    assert changes["engine"].text() == "engine.dtype: 'float32' -> 'bfloat16'"
    assert changes["chunks"].text() == "chunks of prompts: 1 -> 2"
    params = {change.name: change.old for change in compare(one, other) if change.kind == "params"}
    assert params == {"rollout.top_p": 1.0, "rollout.new": ABSENT}
    assert [change for change in own(compare(one, other)) if change.kind == "input"] == []
    assert compare(one, dict(one)) == []


def test_other_problems_are_another_content() -> None:
    other = plan_of("inputs.problems={kind: jsonl, path: x}")
    cause = first_cause(stage(PARENT, "rollout", 1), stage(other, "rollout", 1), by_key(PARENT), by_key(other))
    assert (cause.path[0], [change.text() for change in cause.changes]) == (
        "load_problems",
        ["content of source changed"],
    )


def test_explain_names_the_ingredients_and_with_two_runs_the_cause(tmp_path: Path, capsys) -> None:
    make_run(tmp_path, "one", PARENT)
    make_run(tmp_path, "two", fork_of(PARENT, 1, "loss.shaping.gamma=0.3"))
    explain(tmp_path, "one", "update@2", None, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["key"] == stage(PARENT, "update", 2).key
    assert told["inputs_are"]["samples"][0].startswith("advantage 2.0 samples ")
    explain(tmp_path, "one", "evaluate@2", "two", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["first_cause"]["path"] == ["update 2", "evaluate 2"]
    assert told["first_cause"]["changes"][0]["name"] == "loss.shaping.gamma"
    explain(tmp_path, "one", "rollout@2", "two", as_json=False)
    assert "same key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference", "said", "hint"),
    [
        ("updat", "no stage 'updat'", "update"),
        ("update@9", "no update at 9", "1 to 2"),
        ("update@x", "not STAGE", "@2"),
    ],
)
def test_a_stage_that_is_not_there_is_named_with_the_nearest(tmp_path: Path, reference, said, hint) -> None:
    make_run(tmp_path, "one", PARENT)
    with pytest.raises(UserError, match=said) as caught:
        explain(tmp_path, "one", reference, None, as_json=False)
    assert hint in caught.value.hint


def test_rows_with_other_ids_and_the_same_content_are_no_difference(tmp_path: Path) -> None:
    other = rerun_of(PARENT, "rollout", iteration=1)
    for plan in (PARENT, other):
        publish_all(tmp_path, plan, "load_problems", "prompts", "rollout", "verify", iteration=1)
    found = diff(tmp_path, PARENT, other, 0.0)
    assert found.first is None
    assert (found.shared, found.equal) == (2, 2)
    assert "rollout 2.0" in found.not_compared


def test_the_first_artifact_that_differs_is_shown_row_by_row_and_field_by_field(tmp_path: Path, capsys) -> None:
    other = rerun_of(PARENT, "critique", "critique.kind=indicative")
    make_run(tmp_path, "one", PARENT)
    make_run(tmp_path, "two", other, parent="one")
    for plan in (PARENT, other):
        publish_all(tmp_path, plan, "load_problems", "prompts", "rollout", "verify", "critique", iteration=1)
    assert print_diff(tmp_path, "one", "two", tolerance=0.0, as_json=True)
    first = json.loads(capsys.readouterr().out)["first"]
    assert (first["stage"], first["iteration"], first["rows"]) == ("critique", 1, 4)
    assert {one["field"] for one in first["fields"]} == {"kind", "text"}
    rows = {one["row"] for one in first["fields"]}
    assert len(rows) == 4
    assert all("slot" in row and "index" in row for row in rows)
    assert first["cause"] == "critique 1.0: critique.kind: 'indicative_gt' -> 'indicative'"
    print_diff(tmp_path, "one", "two", tolerance=0.0, as_json=False)
    assert "text: another value in 4 rows" in capsys.readouterr().err


def test_places_are_unique_in_a_plan() -> None:
    assert len(places(PARENT)) == len(PARENT.stages)
