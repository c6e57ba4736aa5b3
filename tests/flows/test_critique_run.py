"""Whole runs with critiques by models: a real HTTP server that misbehaves, real stages, and engines that pretend."""

import json
import logging
import re

import pytest
from critique_server import Raw, Say, Status, critique_server
from fake_run import ROOT, SETS, fake_engines, fake_inputs, run_stage

from cgrpo_core.errors import UserError
from cgrpo_core.records import Critique, CritiqueAttempt, Refinement, SkippedRefinement
from flows.critique_cost import cost_rows
from flows.leaves import make_plan
from flows.summary import iteration_row, stages_of
from storage.artifacts import Store
from storage.catalog import query
from storage.runs import create_run

KEY = "sk-run-secret-2718281828"
VARIABLE = "CGRPO_TEST_CRITIQUE_KEY"
WRONG = "It adds wrongly.\nVerdict: wrong"


def script(body, before):
    """By the problem: too many requests, a body cut short, no verdict, or a contradiction at first."""
    one, two = re.search(r"Problem:\n(\d) and (\d)", body["messages"][0]["content"]).groups()
    way = (3 * int(one) + int(two)) % 4
    if way == 0:
        return Status(429, headers={"Retry-After": "0"}) if before == 0 else Say(WRONG)
    if way == 1:
        return Raw(b'{"choices": [{"mess') if before == 0 else Say(WRONG)
    if way == 2:
        return Say("I cannot tell <|im_end|>")
    return Say("All is well.\nVerdict: correct" if before == 0 else WRONG)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return fake_inputs(tmp_path_factory.mktemp("inputs"))


def endpoint(base_url):
    return f"engines.critiquer.options={{model: m, base_url: '{base_url}', api_key_env: {VARIABLE}, max_retries: 2}}"


def run(home, inputs, monkeypatch, preset, *sets, name="one"):
    """Carry out a run with a preset under engines that pretend; return its plan."""
    fake_engines(monkeypatch)
    monkeypatch.setattr("tasks.fixed_policy.model_weights_digest", lambda directory: "0" * 64)
    settings = [
        *SETS,
        "run.chunks=1",
        "run.prompts_per_iteration=8",
        "critique.max_prompt_tokens=900",
        "critique.max_critique_tokens=40",
    ]
    settings += ["engines.sampler.options.max_model_len=1024", "engines.helper.options.max_model_len=1024"]
    plan = make_plan(ROOT / "pipelines.yaml", "critique-grpo", profile="cpu", presets=[preset], sets=[*settings, *sets])
    create_run(home, name=name, plan=plan, options={"presets": [preset]})
    for stage in plan.stages:
        run_stage(home, stage, plan.config["base_dir"])
    return plan


def rows(home, plan, record):
    store = Store(home)
    found = [(stage, name) for stage in plan.stages for name, kind in stage.outputs.items() if kind == record.__name__]
    return [row for stage, name in found for row in store.read(stage.key, name, record)]


@pytest.fixture
def asked(tmp_path, inputs, monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    with critique_server(script) as server:
        sets = [*inputs, "critique.attempts=2", "limits.degraded_critiques_max=1", endpoint(server.base_url)]
        plan = run(tmp_path, inputs, monkeypatch, "critique_cot", *sets)
        return plan, sets, server


def test_every_attempt_is_a_row_and_refinements_follow_the_critiques_that_were_kept(asked, tmp_path):
    plan, _, server = asked
    critiques, attempts = rows(tmp_path, plan, Critique), rows(tmp_path, plan, CritiqueAttempt)
    assert {row.status for row in attempts} >= {"agreed", "disagreed", "no_verdict", "malformed"}
    assert len(server.asked) >= len({row.reply_id for row in attempts})
    for critique in critiques:
        made = [row for row in attempts if row.critique_id == critique.critique_id]
        assert [row.attempt for row in made] == list(range(1, critique.attempts + 1))
        assert critique.status == ("ok" if made[-1].status == "agreed" else made[-1].status)
        assert (critique.degraded == "skipped") == (critique.status != "ok")
    refined = {row.critique_id for row in rows(tmp_path, plan, Refinement)}
    skipped = {row.critique_id for row in rows(tmp_path, plan, SkippedRefinement)}
    assert refined == {row.critique_id for row in critiques if row.status == "ok"}
    assert skipped == {row.critique_id for row in critiques if row.status != "ok"}
    assert refined


def test_the_table_of_the_iteration_counts_them(asked, tmp_path):
    plan, *_ = asked
    table = [iteration_row(Store(tmp_path), stages_of(plan, iteration)) for iteration in (1, 2)]
    critiques = rows(tmp_path, plan, Critique)
    assert sum(row["critiques"] for row in table) == len(critiques)
    assert sum(row.get("critique_attempts", 0) for row in table) == len(rows(tmp_path, plan, CritiqueAttempt))
    degraded = [row for row in critiques if row.degraded]
    assert sum(row.get("critiques_degraded", 0) for row in table) == len(degraded)
    assert sum(row.get("no_critique", 0) for row in table) == len(degraded)


def test_another_run_with_other_keys_asks_nobody_and_has_the_same_critiques(asked, tmp_path, inputs, monkeypatch):
    plan, sets, _ = asked
    monkeypatch.delenv(VARIABLE)
    # The gate is in the block `refine`, so critiques have other keys under another temperature of refinements.
    offline = [*sets[:-1], endpoint("http://127.0.0.1:9/v1"), "refine.temperature=0.9", "run.iterations=1"]
    again = run(tmp_path, inputs, monkeypatch, "critique_cot", *offline, name="two")
    before = {row.response_id: row for row in rows(tmp_path, plan, Critique)}
    keys = [next(stage.key for stage in made.stages if stage.stage == "critique") for made in (plan, again)]
    assert keys[0] != keys[1]
    found = rows(tmp_path, again, Critique)
    assert found
    for row in found:
        same = before[row.response_id]
        assert (row.status, row.text, row.attempts, row.latency_ms) == (
            *(same.status, same.text, same.attempts, same.latency_ms),
        )
    metrics = Store(tmp_path).find(keys[1]).metrics
    assert (metrics["replies_asked"], metrics["replies_reused"] > 0) == (0, True)


def test_the_key_is_in_no_file_and_no_log(asked, tmp_path, caplog):
    plan, *_ = asked
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text
    assert KEY not in json.dumps(plan.to_json())


def test_what_it_cost_is_told_by_kind_and_model(asked, tmp_path):
    prices = {"m": {"prompt_per_million": 1000.0, "completion_per_million": 2000.0}}
    (row,) = cost_rows(tmp_path, "one", prices)
    (ids,) = query(tmp_path, "select count(distinct reply_id) from critique_attempts where completion_tokens > 0").rows
    assert (row["kind"], row["model"]) == ("cot", "m")
    assert row["completion_tokens"] == 7 * ids[0]  # what the server says of each reply
    assert row["price"] == pytest.approx((11 * 1000 + 7 * 2000) * ids[0] / 1e6)


def test_a_share_of_degraded_critiques_above_the_limit_ends_the_run(tmp_path, inputs, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    with critique_server(lambda *_: Say("no verdict")) as server:
        sets = [*inputs, "critique.attempts=1", "limits.degraded_critiques_max=0.5", endpoint(server.base_url)]
        with pytest.raises(UserError, match=r"degraded_critiques_max is 0.5") as caught:
            run(tmp_path, inputs, monkeypatch, "critique_cot", *sets)
    assert "no_verdict" in caught.value.message


def test_the_policy_criticises_itself_through_the_sampler(tmp_path, inputs, monkeypatch):
    sets = [*inputs, "critique.attempts=2", "critique.degraded=indicative"]
    plan = run(tmp_path, inputs, monkeypatch, "critique_self", *sets)
    attempts, critiques = rows(tmp_path, plan, CritiqueAttempt), rows(tmp_path, plan, Critique)
    assert attempts
    assert {(row.model, row.kind, row.status) for row in attempts} == {("policy", "self", "no_verdict")}
    assert len({row.reply_id for row in attempts}) == len(attempts) == 2 * len(critiques)
    assert {(row.kind, row.model, row.degraded) for row in critiques} == {("indicative", "rule", "indicative")}
    stage = next(stage for stage in plan.stages if stage.stage == "critique")
    assert Store(tmp_path).find(stage.key).evidence["served_policy_version"] == "0"
    assert len(rows(tmp_path, plan, Refinement)) == len(critiques)


def test_another_model_refines_at_its_own_version_while_the_policy_moves_on(tmp_path, inputs, monkeypatch):
    helper = next(one for one in inputs if one.startswith("inputs.base_model")).replace("base_model", "helper_model")
    plan = run(tmp_path, inputs, monkeypatch, "weak_to_strong", *inputs, helper)
    refined = rows(tmp_path, plan, Refinement)
    assert {(row.model, row.policy_version) for row in refined} == {("helper", 0)}
    versions = query(tmp_path, "select distinct policy_version from responses order by all").rows
    assert [row[0] for row in versions] == [0, 1]
