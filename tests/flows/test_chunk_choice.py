"""How many chunks an iteration has when nobody said: by measurement, else by rule, and frozen with its reason."""

import json
from dataclasses import replace

import pytest
from fake_run import ROOT, SETS, fake_engines, fake_inputs, fake_run

from cgrpo_core.errors import UserError
from cgrpo_core.params import RunParams
from flows.chunk_choice import Measured, choose, expected_seconds, measure
from flows.leaves import make_plan
from storage.artifacts import Store
from storage.runs import create_run, read_plan

WAITING = Measured(run="one", iterations=3, sampling=0.5, other=0.4, per_chunk=0.5)


def planned(sets, *more, presets=()):
    sets = [*SETS, *sets, "run.chunks=auto", *more]
    return make_plan(ROOT / "pipelines.yaml", "critique-grpo", profile="cpu", presets=list(presets), sets=sets)


def explore_of(plan):
    return [stage for stage in plan.stages if stage.section == "explore" and stage.iteration == 1 and not stage.chunk]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CGRPO_HOME", str(tmp_path / "home"))
    fake_engines(monkeypatch)
    return tmp_path / "home"


def test_more_chunks_hide_the_shorter_of_sampling_and_waiting_until_they_cost_more_than_they_hide():
    """64 prompts: 32 s of sampling, 25.6 s of others; 57.6 + 0.5, 44.8 + 1, 38.4 + 2, 35.2 + 4, 33.6 + 8 s."""
    found = [expected_seconds(WAITING, 64, count) for count in (1, 2, 4, 8, 16)]
    assert found == pytest.approx([58.1, 45.8, 40.4, 39.2, 41.6])
    chunks, why = choose(64, [], WAITING)
    assert chunks == 8
    assert "explore should take 39.2 s, in one chunk 58.1 s" in why
    assert choose(64, [], replace(WAITING, other=0.0))[0] == 1  # nothing to hide
    assert choose(3, [], replace(WAITING, sampling=9.0, other=9.0))[0] == 2  # no more chunks than prompts


def test_without_a_measurement_a_rule_decides_and_says_so(home, tmp_path):
    inputs = fake_inputs(tmp_path)
    alone = planned(inputs)
    assert alone.config["params"]["run"]["chunks"] == 1
    assert "by rule" in alone.config["decisions"]["run.chunks"]["why"]
    assert {stage.chunk for stage in alone.stages if stage.section == "explore"} == {0}
    asking = planned(inputs, "run.prompts_per_iteration=8", presets=["paper_v6", "critique_cot"])
    assert asking.config["params"]["run"]["chunks"] == 4


def test_what_such_a_run_took_here_decides_and_is_frozen_in_the_plan(home, tmp_path):
    inputs = fake_inputs(tmp_path)
    before = fake_run(home, inputs, name="before")  # two chunks
    slow_down(home, before, {"rollout": 10.0, "critique": 30.0})
    plan = planned(inputs)
    decided = plan.config["decisions"]["run.chunks"]
    assert decided["value"] == plan.config["params"]["run"]["chunks"] == 4  # as many as there are prompts
    assert "iterations of before" in decided["why"]
    create_run(home, name="after", plan=plan, options={})
    assert read_plan(home, "after") == plan
    assert measure(home, "critique-grpo", explore_of(planned(inputs, "rollout.max_response_tokens=17"))) is None


def slow_down(home, plan, seconds):
    """Have the manifests of a run say that its stages took so long, one after the other within a chunk."""
    store, clock = Store(home), {}
    for stage in plan.stages:
        path = store.path(stage.key) / "manifest.json"
        values = json.loads(path.read_text())
        start = clock.get(stage.chunk, 0.0)
        values["started_at"], values["ended_at"] = start, start + seconds.get(stage.stage, 0.125)
        clock[stage.chunk] = values["ended_at"]
        path.with_name("manifest.sha256").unlink()
        path.write_text(json.dumps(values))


def test_a_number_that_is_given_is_taken_and_nothing_is_decided(home, tmp_path):
    plan = planned(fake_inputs(tmp_path), "run.chunks=2")
    assert plan.config["params"]["run"]["chunks"] == 2
    assert "decisions" not in plan.config


def test_auto_is_for_new_runs_only(home, tmp_path):
    with pytest.raises(ValueError, match="give a number"):
        _ = RunParams(chunks="auto").chunk_count
    with pytest.raises(UserError, match="chunks"):
        planned(fake_inputs(tmp_path), "run.chunks=often")
