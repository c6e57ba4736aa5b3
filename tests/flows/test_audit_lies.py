"""A lie that is consistent in bytes: rows published anew with digests, seal and journal to match. What is computed
again still shows it."""

import shutil
from dataclasses import replace

import pytest
from fake_run import fake_engines, fake_run

from flows.audit import audit
from storage.artifacts import Store
from storage.runs import start_attempt
from storage.schemas import RECORDS
from storage.sealing import seal_stages


@pytest.fixture
def lied(ran, tmp_path, monkeypatch):
    """Publish one stage anew with other rows or another manifest; return what an audit then finds."""
    fake_engines(monkeypatch)
    home, plan = tmp_path / "home", ran[1]
    shutil.copytree(ran[0], home)

    def lie(stage_name, change_rows=list, **manifest):
        store = Store(home)
        # The last one that published rows: which groups are refined depends on what the fake sampler drew.
        stage = next(
            one
            for one in reversed(plan.stages)
            if one.stage == stage_name and one.iteration in (None, 1, 2) and has_rows(store.find(one.key))
        )
        published = store.find(stage.key)
        tables = {name: store.read(stage.key, name, RECORDS[record]) for name, record in stage.outputs.items()}
        first = next(iter(tables))
        shutil.rmtree(store.path(stage.key))
        store.publish(
            replace(published, **manifest),
            {
                name: (RECORDS[record], change_rows(tables[name]) if name == first else tables[name])
                for name, record in stage.outputs.items()
            },
        )
        seal_stages(home, "one", [stage])
        return stage, audit(home, "one", lambda message: None).findings

    return lie


def has_rows(manifest):
    return any(output["rows"] for output in manifest.outputs.values())


def changed(**values):
    return lambda rows: [replace(rows[0], **values), *rows[1:]]


def test_a_verdict_turned_from_wrong_to_right_is_found_by_judging_again(lied):
    def turn(rows):
        return [replace(row, correct=not row.correct, reward=1.0 - row.reward) for row in rows[:1]] + rows[1:]

    stage, found = lied("verify", turn)
    named = [row for row in found if row["subject"] == stage.label]
    assert {row["check"] for row in named} == {"recomputed"}
    assert any("correct is" in row["problem"] for row in named)


def test_an_advantage_that_its_rewards_do_not_give_is_found(lied):
    stage, found = lied("advantage", changed(advantage=0.123))
    assert [row["check"] for row in found] == ["recomputed"]
    assert "advantage is 0.123" in found[0]["problem"]
    assert found[0]["subject"] == stage.label


def test_a_prompt_with_another_text_is_found(lied):
    _, found = lied("prompts", changed(text="Something else"))
    assert any(row["check"] == "recomputed" and "text is 'Something else'" in row["problem"] for row in found)


def test_token_ids_that_nobody_sampled_are_found(lied):
    _, found = lied("advantage", lambda rows: [replace(row, token_ids=row.token_ids[::-1]) for row in rows])
    assert any(row["check"] == "tokens" and "other token ids" in row["problem"] for row in found)


def test_a_selection_that_the_draw_does_not_give_is_found(lied):
    _, found = lied("select", lambda rows: rows[1:])
    assert any(row["check"] == "recomputed" and "rows, recomputed" in row["problem"] for row in found)


def test_a_sampler_that_served_other_weights_is_found(lied):
    evidence = {"served_policy_version": "1", "served_weights_sha256": "f" * 64}
    stage, found = lied("rollout", evidence=evidence)
    assert [(row["check"], row["subject"]) for row in found] == [("served", stage.label)]
    assert "sampled from ffffffffffff" in found[0]["problem"]


def test_a_response_of_another_policy_version_is_found(lied):
    _, found = lied("rollout", changed(policy_version=0))
    assert any(row["check"] == "served" and "policy 0" in row["problem"] for row in found)


def test_a_policy_of_another_parent_is_found(lied):
    _, found = lied("update", changed(parent="0" * 64))
    assert any(row["check"] == "policy" and "names the parent" in row["problem"] for row in found)


def test_stored_weights_that_are_not_the_policy_s_are_found(lied):
    _, found = lied("update", changed(weights_sha256="e" * 64))
    assert any(row["check"] == "weights" for row in found)


def test_a_manifest_of_another_seed_does_not_have_its_key(lied, ran):
    rollout = next(stage for stage in ran[1].stages if stage.stage == "rollout" and stage.iteration == 2)
    _, found = lied("rollout", ingredients={**rollout.ingredients, "seed": 1})
    assert [row["check"] for row in found] == ["link"]


def test_a_run_that_was_killed_is_clean_and_says_what_is_not_sealed_yet(tmp_path, settings, monkeypatch):
    fake_engines(monkeypatch)
    plan = fake_run(tmp_path, settings, until=1)
    certificate = audit(tmp_path, "one", lambda message: None)
    assert certificate.clean
    assert certificate.state == "crashed"
    assert 0 < certificate.counts["artifacts"] < len(plan.stages)
    assert len(certificate.notes) == certificate.counts["artifacts"]
    assert all("cgrpo resume seals it" in row["problem"] for row in certificate.notes)
    start_attempt(tmp_path, "one")
    seal_stages(tmp_path, "one", plan.stages)
    assert audit(tmp_path, "one", lambda message: None).notes == []


def test_a_run_without_an_update_has_none_to_replay_and_says_so(tmp_path, settings, monkeypatch):
    fake_engines(monkeypatch)
    fake_run(tmp_path, settings, until=0)
    certificate = audit(tmp_path, "one", lambda message: None, replay=True)
    assert certificate.clean
    assert certificate.replay == []
    assert certificate.notes[-1]["problem"] == "has no update to replay yet"


def test_a_table_of_an_unfinished_run_that_vanished_with_its_manifest_is_still_missed(tmp_path, settings, monkeypatch):
    fake_engines(monkeypatch)
    plan = fake_run(tmp_path, settings, until=1)
    seal_stages(tmp_path, "one", plan.stages)
    gone = next(stage for stage in plan.stages if stage.stage == "critique")
    shutil.rmtree(Store(tmp_path).path(gone.key))
    certificate = audit(tmp_path, "one", lambda message: None)
    assert f"artifacts/{gone.key[:2]}/{gone.key}/manifest.json" in {row["subject"] for row in certificate.findings}


def test_without_its_frozen_plan_a_run_is_damaged_and_nothing_else_is_claimed(tmp_path, settings, monkeypatch):
    fake_engines(monkeypatch)
    fake_run(tmp_path, settings, until=0)
    path = tmp_path / "runs" / "one" / "plan.json"
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 43'))
    certificate = audit(tmp_path, "one", lambda message: None)
    assert not certificate.clean
    assert [row["subject"] for row in certificate.findings] == ["runs/one/plan.json"]
    assert certificate.counts["artifacts"] == 0
