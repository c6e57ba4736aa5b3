"""The trainer as named Ray actors: world size 2 against 1, and ranks that die."""

import pytest
import torch
from training_samples import build_request, build_samples, without_advantage

from cgrpo_core.weights import weights_digest
from tasks.engines.deepspeed_trainer import DeepSpeedTrainer, find_trainer, start_trainer, stop_trainer
from tasks.engines.export import read_tensors
from tasks.engines.faults import EngineLost
from tasks.engines.protocol import LogprobGapExceeded, PolicyMismatch

pytestmark = pytest.mark.e2e


def declare(world_size, stage):
    return {"kind": "deepspeed", "replicas": world_size, "options": {"zero_stage": stage, "num_threads": 1}}


def updated_weights(trainer, base, model_dir, directory):
    """Return the weights after two updates, of unequal micro-batches and of a rank without rows."""
    trainer.load_weights(base, str(model_dir))
    first = trainer.update(build_request(build_samples(), tokens_per_micro_batch=40), base)
    second = trainer.update(build_request(build_samples(seed=2), tokens_per_micro_batch=1000), first.policy)
    trainer.export_weights(str(directory), second.policy)
    tensors = read_tensors(directory / "model.safetensors")
    assert weights_digest(tensors.items()) == second.policy.weights_sha256
    return tensors, first


@pytest.fixture(scope="module")
def one_rank(local_ray, model_dir, base, tmp_path_factory):
    declaration = declare(1, 0)
    trainer = start_trainer("one", declaration, str(model_dir), detached=False)
    yield updated_weights(trainer, base, model_dir, tmp_path_factory.mktemp("one") / "w")
    stop_trainer("one", declaration)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_give_the_weights_of_one(local_ray, one_rank, model_dir, base, tmp_path, stage):
    declaration = declare(2, stage)
    trainer = start_trainer("two", declaration, str(model_dir), detached=False)
    weights, report = updated_weights(trainer, base, model_dir, tmp_path / "w")
    expected, expected_report = one_rank
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=0)
    assert report.loss == pytest.approx(expected_report.loss, abs=1e-7)
    assert report.grad_norm == pytest.approx(expected_report.grad_norm, rel=1e-4)
    assert report.entropy == pytest.approx(expected_report.entropy, rel=1e-5)
    assert report.logprob_gap_max == pytest.approx(expected_report.logprob_gap_max, abs=1e-5)
    idle = trainer.update(build_request(without_advantage(build_samples())), trainer.held())
    assert idle.status == "no_gradient"
    with pytest.raises(LogprobGapExceeded):
        trainer.update(build_request(build_samples(), gap=1e-6), trainer.held())
    assert trainer.held() == idle.policy
    stop_trainer("two", declaration)


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_whose_starter_was_killed_before_they_met_are_no_trainer(
    local_ray, model_dir, base, world_size, monkeypatch
):
    def killed(self, method, *arguments):
        raise KeyboardInterrupt

    declaration = declare(world_size, 0)
    with monkeypatch.context() as patch:
        patch.setattr(DeepSpeedTrainer, "_call", killed)
        with pytest.raises(KeyboardInterrupt):
            start_trainer("unmet", declaration, str(model_dir), detached=True)
    assert local_ray.get_actor("unmet-rank0", namespace="cgrpo") is not None
    assert find_trainer("unmet", declaration) is None
    start_trainer("unmet", declaration, str(model_dir), detached=True)
    found = find_trainer("unmet", declaration)
    assert found is not None
    found.load_weights(base, str(model_dir))
    assert found.held() == base
    stop_trainer("unmet", declaration)


def test_a_dead_rank_ends_the_trainer_and_a_checkpoint_brings_it_back_with_another_world_size(
    local_ray, model_dir, base, tmp_path
):
    declaration = declare(2, 2)
    trainer = start_trainer("dying", declaration, str(model_dir), detached=True)
    trainer.load_weights(base, str(model_dir))
    first = trainer.update(build_request(build_samples()), base).policy
    trainer.save_checkpoint(str(tmp_path / "c"), first)
    second = trainer.update(build_request(build_samples(seed=2)), first).policy
    found = find_trainer("dying", declaration)
    assert found is not None
    assert found.held() == second
    found.export_weights(str(tmp_path / "w"), second)
    with pytest.raises(PolicyMismatch):
        found.update(build_request(build_samples()), first)

    local_ray.kill(local_ray.get_actor("dying-rank1", namespace="cgrpo"), no_restart=True)
    with pytest.raises(EngineLost):
        trainer.update(build_request(build_samples()), second)
    assert find_trainer("dying", declaration) is None

    stop_trainer("dying", declaration)
    alone = declare(1, 0)
    again = start_trainer("dying", alone, str(model_dir), detached=False)
    assert again.held() is None
    again.load_checkpoint(first, str(tmp_path / "c"))
    third = again.update(build_request(build_samples(seed=2)), first).policy
    again.export_weights(str(tmp_path / "again"), third)
    expected = read_tensors(tmp_path / "w" / "model.safetensors")
    for name, tensor in read_tensors(tmp_path / "again" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    stop_trainer("dying", alone)
