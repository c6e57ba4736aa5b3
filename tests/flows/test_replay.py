"""Updates taken again from what is stored: equal digests, or the update that differs is named."""

import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fake_run import fake_engines

from cgrpo_core.errors import UserError
from cgrpo_core.records import TrainingSample
from flows.audit import audit
from flows.replay import passes, replay_run
from storage.artifacts import Store
from storage.policies import drop
from tasks.engines.export import write_tensors
from tasks.engines.fake import FakeTrainer


class Tensors(FakeTrainer):
    """A fake trainer whose weights are a tensor too, off by `error` from what was published."""

    error = 0.0

    def export_weights(self, directory, expect):
        super().export_weights(directory, expect)
        write_tensors_of(directory, expect.policy_version + self.error)


def write_tensors_of(directory, value):
    from pathlib import Path

    write_tensors(Path(directory) / "model.safetensors", [("w", torch.full((4,), float(value)))])


@pytest.fixture
def home(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that replays start, in order; a local Ray is not started for them."""
    fake_engines(monkeypatch)
    started = []

    @contextmanager
    def own_trainer(declaration, base):
        started.append(Tensors())
        yield started[-1]

    @contextmanager
    def no_cluster():
        yield False

    monkeypatch.setattr("tasks.replay.own_trainer", own_trainer)
    monkeypatch.setattr("flows.replay.ray_cluster", no_cluster)
    return started


def replayed(home, **options):
    said = []
    return replay_run(home, "one", progress=said.append, **options), said


def lie_about_a_sample(home, plan, iteration):
    stage = next(one for one in plan.stages if one.stage == "advantage" and one.iteration == iteration)
    store = Store(home)
    rows = store.read(stage.key, "samples", TrainingSample)
    manifest = store.find(stage.key)
    shutil.rmtree(store.path(stage.key))
    changed = [replace(row, advantage=row.advantage + 0.5) for row in rows]
    store.publish(manifest, {"samples": (TrainingSample, changed)})


def test_every_update_gives_the_published_weights_again_and_it_says_before_what_it_will_do(home, trainers):
    updates, said = replayed(home)
    assert [(update.iteration, update.verdict) for update in updates] == [(1, "equal"), (2, "equal")]
    assert passes(updates, 0.0)
    assert said[0].startswith("replaying 2 updates of run one, iterations 1 to 2: 2")
    assert len(trainers) == 1


def test_from_a_later_iteration_the_nearest_checkpoint_is_taken(home, trainers):
    updates, _ = replayed(home, first=2)
    assert [update.iteration for update in updates] == [2]
    assert len(trainers[0].updates) == 1


def test_without_that_checkpoint_the_updates_before_are_replayed_too(home, ran, trainers):
    update = next(stage for stage in ran[1].stages if stage.stage == "update" and stage.iteration == 1)
    drop(home, f"checkpoints/{update.key}")
    replayed(home, first=2)
    assert len(trainers[0].updates) == 2


def test_one_changed_sample_names_the_update_and_the_later_ones_are_not_claimed(home, ran, trainers):
    lie_about_a_sample(home, ran[1], 1)
    drop(home, f"weights/{next(s.key for s in ran[1].stages if s.stage == 'update')}")
    updates, said = replayed(home)
    assert [(update.iteration, update.equal) for update in updates] == [(1, False)]
    assert not passes(updates, 0.0)
    assert any("update 1: DIFFERENT" in line for line in said)


@pytest.mark.parametrize(
    ("error", "tolerance", "verdict"), [(0.1, 0.06, "within"), (0.1, 0.04, "beyond"), (0, 0, "beyond")]
)
def test_a_distance_is_measured_over_how_far_training_had_moved(
    home, ran, trainers, monkeypatch, error, tolerance, verdict
):
    """Published weights are 2 everywhere, the base model's 0, so an error of 0.1 is 5% of the way."""
    update = next(stage for stage in ran[1].stages if stage.stage == "update" and stage.iteration == 2)
    lie_about_a_sample(home, ran[1], 2)
    write_tensors_of(home / "weights" / update.key, 2.0)
    base = home / "base"
    base.mkdir()
    write_tensors_of(base, 0.0)
    shutil.copy(next((home / "weights" / update.key).glob("fake*")), base)
    monkeypatch.setattr("tasks.replay.resolve_model", lambda *_: base)
    monkeypatch.setattr(Tensors, "error", error)
    updates, _ = replayed(home, first=2, tolerance=tolerance)
    assert updates[0].verdict == verdict
    assert updates[0].relative == pytest.approx(error / 2, abs=1e-7)
    assert updates[0].max_abs == pytest.approx(error, abs=1e-6)
    assert passes(updates, tolerance) == (verdict == "within")


def test_an_audit_replays_when_asked_and_a_clean_one_says_so(home, trainers):
    certificate = audit(home, "one", lambda message: None, replay=True)
    assert certificate.clean
    assert [update["verdict"] for update in certificate.replay] == ["equal", "equal"]


def test_an_iteration_that_has_no_update_is_a_mistake_that_is_explained(home, trainers):
    with pytest.raises(UserError, match="no published update in iterations 7") as caught:
        replayed(home, first=7)
    assert "1 to 2" in caught.value.hint
