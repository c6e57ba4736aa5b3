"""A damaged checkpoint is never gone on from: an older one is, and the stored samples are trained on again."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from storage_rows import a_manifest, key_of
from training_samples import build_samples

from cgrpo_core.params import Params
from cgrpo_core.records import Policy, TrainingSample
from storage.artifacts import Store
from storage.policies import complete, damaged_files, publish_directory
from tasks.engines.fake import FakeSampler, FakeTrainer, write_fake_weights
from tasks.engines.faults import WeightsMissing
from tasks.engines.lease import load_stored
from tasks.engines.protocol import PolicyMismatch
from tasks.policies import bring_to, policy_ref, update_request

PARAMS = {
    name: values for name, values in asdict(Params()).items() if name in ("rollout", "loss", "optimizer", "limits")
}
KEYS = [key_of(f"update {version}") for version in range(4)]


def publish(store: Store, version: int, digest: str, samples_key: str | None) -> Policy:
    parent = KEYS[version - 1] if version else None
    policy = Policy(policy_version=version, parent=parent, weights_sha256=digest, weights=None, checkpoint=None)
    inputs = {"samples": [f"{samples_key}/samples"]} if samples_key else {}
    store.publish(a_manifest(KEYS[version], params=PARAMS, inputs=inputs), {"policy": (Policy, [policy])})
    return policy


@pytest.fixture
def place(tmp_path: Path) -> SimpleNamespace:
    """Three updates, each with a checkpoint."""
    store, trainer, base = Store(tmp_path), FakeTrainer(), tmp_path / "base"
    write_fake_weights(str(base), "b" * 64)
    held = trainer.load_weights(policy_ref(publish(store, 0, "b" * 64, None)), str(base))
    for version in (1, 2, 3):
        samples = [replace(one, sampling_logprobs=(-0.5,) * len(one.token_ids)) for one in build_samples(seed=version)]
        key = key_of(f"samples {version}")
        store.publish(a_manifest(key), {"samples": (TrainingSample, samples)})
        held = trainer.update(update_request(PARAMS, samples), held).policy
        publish(store, version, held.weights_sha256, key)
        publish_directory(
            tmp_path, "checkpoints", KEYS[version], lambda path, at=held: trainer.save_checkpoint(str(path), at)
        )
    return SimpleNamespace(home=tmp_path, store=store, base=base, last=held)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "whole": (lambda directory: None, 0),
    "cut in half": (lambda directory: (directory / "fake_weights.json").write_text("{"), 1),
    "a bit of the optimizer flipped": (lambda directory: flip_a_bit(directory / "optimizer_step"), 1),
    "a file gone": (lambda directory: (directory / "optimizer_step").unlink(), 1),
    "its digests gone": (lambda directory: (directory / "DIGESTS.json").unlink(), 1),
    "its digests cut": (lambda directory: (directory / "DIGESTS.json").write_text('{"files": {'), 1),
}


@pytest.mark.parametrize(("damage", "replayed"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_the_weights_come_out_the_same(place, damage, replayed) -> None:
    damage(place.home / "checkpoints" / KEYS[3])
    trainer = FakeTrainer()
    bring_to(place.home, trainer, KEYS[3], place.base)
    assert trainer.held() == place.last
    assert len(trainer.updates) == replayed


def test_with_every_checkpoint_damaged_the_base_model_and_all_samples_remain(place) -> None:
    for version in (1, 2, 3):
        flip_a_bit(place.home / "checkpoints" / KEYS[version] / "optimizer_step")
    trainer = FakeTrainer()
    bring_to(place.home, trainer, KEYS[3], place.base)
    assert trainer.held() == place.last
    assert len(trainer.updates) == 3


def test_a_flipped_bit_has_the_right_size_and_is_found_by_its_digest(place) -> None:
    flip_a_bit(place.home / "checkpoints" / KEYS[2] / "optimizer_step")
    assert complete(place.home, f"checkpoints/{KEYS[2]}")
    assert damaged_files(place.home, f"checkpoints/{KEYS[2]}") == ["optimizer_step"]


def test_damaged_weights_are_dropped_and_made_again(tmp_path: Path) -> None:
    def write(digest: str):
        return lambda path: write_fake_weights(str(path), digest)

    key, digest = KEYS[1], "d" * 64
    weights = publish_directory(tmp_path, "weights", key, write(digest))
    policy = Policy(policy_version=1, parent=KEYS[0], weights_sha256=digest, weights=weights, checkpoint=None)
    made: list[Policy] = []

    def rebuild(wanted: Policy) -> str:
        made.append(wanted)
        return str(tmp_path / publish_directory(tmp_path, "weights", key, write(digest)))

    write_fake_weights(str(tmp_path / weights), "e" * 64)  # other bytes, of the same size
    assert complete(tmp_path, weights)
    sampler = FakeSampler()
    load_stored(tmp_path, sampler, policy_ref(policy), policy, rebuild)
    assert (sampler.held(), made) == (policy_ref(policy), [policy])
    assert damaged_files(tmp_path, weights) == []


@pytest.mark.parametrize("fault", [PolicyMismatch("another digest"), WeightsMissing("cannot be read", "resume")])
def test_weights_that_a_power_failure_left_without_content_are_made_again(tmp_path: Path, fault: Exception) -> None:
    def write(path: Path) -> None:
        write_fake_weights(str(path), "d" * 64)
        (path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    class Sampler(FakeSampler):
        def load(self, policy, weights_dir):
            if not any((Path(weights_dir) / "model.safetensors").read_bytes()):
                raise fault
            return super().load(policy, weights_dir)

    key = KEYS[1]
    no_tensors = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    weights = publish_directory(tmp_path, "weights", key, write, no_tensors)
    policy = Policy(policy_version=1, parent=KEYS[0], weights_sha256="d" * 64, weights=weights, checkpoint=None)
    (tmp_path / weights / "model.safetensors").write_bytes(bytes(10))
    sampler = Sampler()
    rebuild = partial(publish_directory, tmp_path, "weights", key, write, no_tensors)
    load_stored(tmp_path, sampler, policy_ref(policy), policy, lambda _: str(tmp_path / rebuild()))
    assert sampler.held() == policy_ref(policy)
    assert damaged_files(tmp_path, weights) == []


def test_whole_weights_of_another_policy_are_a_mismatch_and_stay(tmp_path: Path) -> None:
    weights = publish_directory(tmp_path, "weights", KEYS[1], lambda path: write_fake_weights(str(path), "e" * 64))
    policy = Policy(policy_version=1, parent=KEYS[0], weights_sha256="d" * 64, weights=weights, checkpoint=None)
    with pytest.raises(PolicyMismatch):
        load_stored(tmp_path, FakeSampler(), policy_ref(policy), policy, lambda _: pytest.fail("nothing is damaged"))
    assert complete(tmp_path, weights)
