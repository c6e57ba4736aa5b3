"""Every stored text judged again: nothing is sampled, what would change is named, and the run stays as it is."""

import shutil
from dataclasses import replace

import pytest
from fake_run import fake_engines

from cgrpo_core.errors import UserError
from cgrpo_core.records import TrainingSample, Verdict
from flows.audit import audit
from flows.regrade import regrade_run, verify_settings
from storage.artifacts import Store
from tasks.verifier_pool import verify_all


@pytest.fixture
def home(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "home")
    return tmp_path / "home"


def lenient(cases, params):
    """Another verifier: the answer 2 is right, whatever the ground truth."""
    verdicts = verify_all(cases, params)
    return [replace(one, correct=True, reward=1.0) if one.answer == "2" else one for one in verdicts]


def regraded(home, **settings):
    said = []
    return regrade_run(home, "one", settings, said.append), said


def rows(home, plan, record, kind):
    store = Store(home)
    stages = [(stage, name) for stage in plan.stages for name, found in stage.outputs.items() if found == kind]
    return [row for stage, name in stages for row in store.read(stage.key, name, record)]


def test_the_same_verifier_flips_nothing_and_a_second_call_judges_nothing(home, ran):
    found, said = regraded(home)
    texts = len(rows(home, ran[1], Verdict, "Verdict")) + 2 * 4
    assert said[0].startswith(f"judging {texts} stored texts of run one again")
    assert (found["judged"], found["judged_before_this_call"]) == (texts, 0)
    assert (found["flips"], found["advantages_changed"], found["updates_affected"]) == ([], 0, [])
    again, _ = regraded(home)
    assert again["judged_before_this_call"] == texts
    assert again["flips"] == []


def test_another_verifier_names_every_flip_and_the_advantages_and_updates_that_hang_on_it(home, ran, monkeypatch):
    plan = ran[1]
    before = {row.subject_id: row for row in rows(home, plan, Verdict, "Verdict")}
    monkeypatch.setattr("tasks.verify.verify_all", lenient)
    monkeypatch.setattr("tasks.regrade.verify_all", lenient)
    found, _ = regraded(home, timeout_s=6.0)
    flipped = {subject_id for subject_id, row in before.items() if row.answer == "2" and not row.correct}
    assert flipped
    assert {row["subject_id"] for row in found["flips"]} >= flipped
    assert set(found["outcomes"]) == {"wrong -> right"}
    assert {row["text"] for row in found["flips"]} == {"2"}
    assert found["updates_affected"] == [1, 2]
    stored = {row.sample_id: row.advantage for row in rows(home, plan, TrainingSample, "TrainingSample")}
    assert found["advantages_turned"]
    for change in found["advantages_turned"]:
        assert change["before"] == stored.get(change["sample_id"])
        assert (change["before"] or 0) * (change["after"] or 0) <= 0


def test_an_evaluation_is_judged_again_too(home, monkeypatch):
    monkeypatch.setattr(
        "tasks.regrade.verify_all",
        lambda cases, params: [replace(one, correct=True) for one in verify_all(cases, params)],
    )
    found, _ = regraded(home, timeout_s=7.0)
    assert [(row["stage"], row["problems"], row["again"]) for row in found["evaluations"]] == [
        ("evaluate_base", 4, 4),
        ("evaluate 2", 4, 4),
    ]


def test_judging_again_writes_nothing_into_the_run(home, monkeypatch):
    monkeypatch.setattr("tasks.verify.verify_all", lenient)
    before = {path: path.read_bytes() for path in (home / "runs").rglob("*") if path.is_file()}
    regraded(home)
    assert {path: path.read_bytes() for path in (home / "runs").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    fake_engines(monkeypatch)
    assert audit(home, "one", lambda message: None).clean


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["rollout.group_size=3"], "rollout"),
        (["verify.timeout=3"], "timeout_s"),
        (["verify.verifier=nobody"], "nobody"),
        (["inputs.problems.path=x"], "inputs"),
    ],
)
def test_what_is_no_setting_of_a_verifier_is_refused_with_the_nearest(sets, said):
    with pytest.raises(UserError) as caught:
        verify_settings(None, sets)
    assert said in caught.value.message + caught.value.hint
