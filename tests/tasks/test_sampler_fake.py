"""The stand-ins for unit tests keep the contract of the engines that they stand for."""

import pytest

from cgrpo_core.params import LossParams, OptimizerParams
from cgrpo_core.records import TrainingSample
from tasks.engines.fake import END_TOKEN, FakeSampler, FakeTrainer, write_fake_weights
from tasks.engines.protocol import PolicyMismatch, PolicyRef, SampleRequest, SamplingSettings, UpdateRequest

BASE = PolicyRef(policy_version=0, weights_sha256="a" * 64)


@pytest.fixture
def weights(tmp_path):
    write_fake_weights(str(tmp_path / "base"), BASE.weights_sha256)
    return str(tmp_path / "base")


def update(advantage: float) -> UpdateRequest:
    sample = TrainingSample(
        sample_id="s",
        group_id="g",
        origin="response",
        prompt_token_ids=(1,),
        token_ids=(2,),
        sampling_logprobs=(-0.5,),
        reward=1.0,
        advantage=advantage,
        weight=1.0,
    )
    return UpdateRequest(
        samples=(sample,),
        loss=LossParams(),
        optimizer=OptimizerParams(),
        max_response_tokens=8,
        sampling_temperature=1.0,
        logprob_gap_max=None,
    )


def test_a_fake_sampler_answers_by_request_and_policy_and_cuts_at_the_limit(weights):
    sampler = FakeSampler()
    sampler.load(BASE, weights)
    request = SampleRequest(request_id="r", prompt_token_ids=(1, 2), seed=3)
    whole = sampler.sample([request], SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=99), BASE)[0]
    short = sampler.sample([request], SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=3), BASE)[0]
    assert whole.finish_reason == "stop"
    assert whole.token_ids[-1] == END_TOKEN
    assert bytes(whole.token_ids[:-1]).decode() == whole.text
    assert (short.finish_reason, short.token_ids) == ("length", whole.token_ids[:3])


def test_fake_engines_refuse_another_policy(weights):
    other = PolicyRef(policy_version=1, weights_sha256="b" * 64)
    for engine, load in ((sampler := FakeSampler(), sampler.load), (trainer := FakeTrainer(), trainer.load_weights)):
        with pytest.raises(PolicyMismatch):
            load(other, weights)
        assert engine.held() is None


def test_a_fake_trainer_replays_to_the_same_digest_from_a_checkpoint(weights, tmp_path):
    first = FakeTrainer()
    first.load_weights(BASE, weights)
    middle = first.update(update(1.0), BASE).policy
    first.save_checkpoint(str(tmp_path / "checkpoint"), middle)
    last = first.update(update(0.5), middle).policy
    second = FakeTrainer()
    second.load_checkpoint(middle, str(tmp_path / "checkpoint"))
    assert second.update(update(0.5), middle).policy == last
    assert len({BASE.weights_sha256, middle.weights_sha256, last.weights_sha256}) == 3


def test_a_fake_update_without_advantages_keeps_the_weights(weights):
    trainer = FakeTrainer()
    trainer.load_weights(BASE, weights)
    report = trainer.update(update(0.0), BASE)
    assert report.status == "no_gradient"
    assert report.policy == PolicyRef(policy_version=1, weights_sha256=BASE.weights_sha256)
