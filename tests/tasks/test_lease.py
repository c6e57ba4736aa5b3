"""Leasing: one engine however many ask, the policy that was asked for, and a new engine where one died."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

from cgrpo_core.errors import UserError
from cgrpo_core.records import Policy
from cgrpo_core.weights import weights_digest
from storage.policies import publish_directory
from tasks.engines.faults import EngineLost, WeightsMissing
from tasks.engines.lease import engine_name, lease_sampler, lease_trainer, list_engines, sampling_progress, stop_engines
from tasks.engines.protocol import PolicyRef, SampleRequest, SamplingSettings

DECLARATION = {
    "name": "sampler",
    "kind": "vllm",
    "replicas": 1,
    "options": {"dtype": "float32", "max_model_len": 1024, "kv_cache_gib": 0.1},
}
SHORT = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=8)
LONG = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=1000)


def model_files(directory: Path, text: str = "{}") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(text)
    return directory


def test_an_engine_is_named_by_home_model_and_the_options_that_change_results(tmp_path):
    model = model_files(tmp_path / "model")
    name = engine_name(tmp_path, DECLARATION, model)
    assert name.startswith("sampler-")
    assert engine_name(tmp_path, {**DECLARATION, "replicas": 3}, model_files(tmp_path / "copy")) == name
    others = [
        engine_name(tmp_path / "elsewhere", DECLARATION, model),
        engine_name(tmp_path, DECLARATION, model_files(tmp_path / "other", '{"a": 1}')),
        engine_name(tmp_path, {**DECLARATION, "options": {"dtype": "bfloat16"}}, model),
    ]
    assert len({name, *others}) == 4


def test_a_trainer_with_another_number_of_ranks_is_another_engine(tmp_path):
    model = model_files(tmp_path / "model")
    trainer = {"name": "trainer", "kind": "deepspeed", "options": {"zero_stage": 2, "num_threads": 1}}
    names = {engine_name(tmp_path, {**trainer, "replicas": count}, model) for count in (1, 2)}
    assert len(names) == 2
    assert engine_name(tmp_path, {**trainer, "options": {"zero_stage": 2, "num_threads": 2}}, model) in names


def test_an_engine_of_another_kind_is_refused(tmp_path):
    policy = Policy(policy_version=0, parent=None, weights_sha256="aa", weights=None, checkpoint=None)
    with pytest.raises(UserError, match="'deepspeed' where 'vllm' is needed"):
        lease_sampler(tmp_path, {"name": "trainer", "kind": "deepspeed"}, tmp_path, policy)
    with pytest.raises(UserError, match="'vllm' where 'deepspeed' is needed"):
        lease_trainer(tmp_path, DECLARATION, tmp_path)


def test_a_directory_that_is_no_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.json"):
        engine_name(tmp_path, DECLARATION, tmp_path)


def test_without_ray_there_is_no_progress():
    assert sampling_progress() is None


@pytest.fixture(scope="module")
def place(tmp_path_factory, local_ray):
    """A home with the weights of policy 1 in the store, and a base model that is policy 0."""
    home = tmp_path_factory.mktemp("home")
    build_tiny_model(home / "base", seed=0)
    publish_directory(home, "weights", "1" * 64, lambda path: build_tiny_model(path, seed=1) and None)
    yield home
    stop_engines(list_engines())


def policy_of(home: Path, version: int) -> Policy:
    from safetensors.torch import load_file

    weights = None if version == 0 else f"weights/{'1' * 64}"
    tensors = load_file(home / (weights or "base") / "model.safetensors")
    return Policy(
        policy_version=version,
        parent="0" * 64 if version else None,
        weights_sha256=weights_digest(tensors.items()),
        weights=weights,
        checkpoint=None,
    )


def lease(home: Path, version: int):
    policy = policy_of(home, version)
    sampler = lease_sampler(home, DECLARATION, home / "base", policy, lambda policy: str(home / "base"))
    return sampler, PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)


def ask(count: int) -> list[SampleRequest]:
    return [SampleRequest(request_id=f"r{n}", prompt_token_ids=(40, 41, 42 + n), seed=n) for n in range(count)]


@pytest.mark.e2e
def test_two_tasks_that_lease_at_once_share_an_engine_that_outlives_them(place, local_ray):
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

    @local_ray.remote(max_calls=1, num_cpus=0)
    def lease_in_a_worker_that_ends(home):
        sampler, policy = lease(home, 0)
        return sampler.sample(ask(2), SHORT, policy), sampler.stats().loads

    first, second = local_ray.get([lease_in_a_worker_that_ends.remote(place) for _ in range(2)])
    assert first[0] == second[0]
    assert list_engines() == [f"{engine_name(place, DECLARATION, place / 'base')}-0"]
    sampler, policy = lease(place, 0)
    assert sampler.sample(ask(2), SHORT, policy) == first[0]
    assert sampler.stats().loads == first[1] == second[1] == 1
    assert sampling_progress()["requests_done"] == 6


@pytest.mark.e2e
def test_leasing_another_policy_loads_it_from_the_store_or_asks_for_it(place):
    sampler, base = lease(place, 0)
    before = sampler.sample(ask(2), SHORT, base)
    sampler, stored = lease(place, 1)
    assert sampler.held() == stored
    assert sampler.sample(ask(2), SHORT, stored) != before
    with pytest.raises(WeightsMissing, match="policy 0 are not in the store"):
        lease_sampler(place, DECLARATION, place / "base", policy_of(place, 0))
    assert lease(place, 0)[0].sample(ask(2), SHORT, base) == before


@pytest.mark.e2e
def test_a_sampler_killed_mid_rollout_is_replaced_at_the_same_policy(place, local_ray):
    sampler, policy = lease(place, 1)
    expected = sampler.sample(ask(3), SHORT, policy)
    name, done = list_engines()[0], sampler.progress()["tokens"]
    with ThreadPoolExecutor(1) as caller:
        rollout = caller.submit(sampler.sample, ask(64), LONG, policy)
        wait_until(lambda: sampler.progress()["tokens"] > done + 64)
        local_ray.kill(local_ray.get_actor(name, namespace="cgrpo"))
        with pytest.raises(EngineLost, match=name):
            rollout.result()
    with pytest.raises(EngineLost, match=name):
        sampler.held()
    again, _ = lease(place, 1)
    assert again.held() == policy
    assert again.sample(ask(3), SHORT, policy) == expected
    assert again.stats().loads == 1


@pytest.mark.e2e
def test_engines_are_listed_and_ended_by_name(place):
    lease(place, 0)
    names = list_engines()
    assert names
    stop_engines(names)
    assert list_engines() == []
    assert sampling_progress() is None


def wait_until(condition) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.1)
    raise TimeoutError("it did not happen within a minute")
