"""Weights from trainer to sampler by vLLM's weight-transfer API.

Its own backends need GPUs. Here a backend of the test's carries tensors as they are, and the rest is the real thing: a
vLLM engine on the CPU with its worker's side of the protocol, vLLM's factory of trainers, the actors and the loop.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tiny_model import build_tiny_model

from cgrpo_core.errors import UserError
from tasks.engines.faults import EngineBroken, EngineNotStarted
from tasks.engines.protocol import PolicyMismatch, PolicyRef, SampleRequest, SamplingSettings
from tasks.engines.sampler_options import read_declaration
from tasks.engines.vllm_sampler import SamplerActor, VllmSampler
from tasks.engines.weight_transfer import Transfer, trainer_info

CALLS = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12)
ASKED = [SampleRequest(request_id=f"r{n}", prompt_token_ids=tuple(range(40, 80)), seed=n) for n in range(3)]


@pytest.fixture
def caller():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_the_calls_of_a_transfer_are_carried_out_by_the_thread_that_serves_and_in_order(caller):
    transfer, done = Transfer(), []

    def trainer():
        for method in CALLS:
            transfer.call(method, {"of": method})
            assert done[-1][0] == method  # it returned when it was carried out
        transfer.call("accept", {"w": torch.ones(1)})

    sent = caller.submit(trainer)
    accepted = transfer.serve(lambda name, given: done.append((name, given, threading.get_ident())), 5)
    sent.result()
    assert list(accepted) == ["w"]
    assert [name for name, _, _ in done] == list(CALLS)
    assert {thread for _, _, thread in done} == {threading.get_ident()}
    given = [{"init_info": {"of": CALLS[0]}}, {}, {"update_info": {"of": CALLS[2]}}, {}]
    assert [one for _, one, _ in done] == given


def test_a_call_that_fails_is_heard_on_both_sides(caller):
    def fail(name, given):
        raise RuntimeError("no room")

    transfer = Transfer()
    sent = caller.submit(transfer.call, "start_weight_update")
    with pytest.raises(RuntimeError, match="no room"):
        transfer.serve(fail, 5)
    with pytest.raises(RuntimeError, match="no room"):
        sent.result()


def test_a_trainer_that_falls_silent_breaks_the_transfer_and_weights_that_were_not_finished_are_not_accepted(caller):
    with pytest.raises(EngineBroken, match="stood still"):
        Transfer().serve(lambda name, given: None, 0.01)
    transfer = Transfer()
    sent = caller.submit(transfer.call, "accept", {})
    with pytest.raises(EngineBroken, match="not finished"):
        transfer.serve(lambda name, given: None, 5)
    with pytest.raises(EngineBroken):
        sent.result()


@pytest.mark.parametrize("way", ["ipc", "nccl"])
def test_a_way_from_gpu_to_gpu_is_refused_where_there_is_none(way):
    declaration = {"name": "sampler", "kind": "vllm", "options": {"weight_transfer": way}}
    with pytest.raises(UserError, match="from GPU to GPU, and the sampler has none"):
        read_declaration(declaration)
    options = read_declaration({**declaration, "resources": {"num_gpus": 1}}).options
    assert options.engine_arguments("model")["weight_transfer_config"] == {"backend": way}


def test_a_way_that_is_none_is_refused_and_files_ask_nothing_of_vllm():
    with pytest.raises(UserError, match="weight_transfer is 'pigeon'"):
        read_declaration({"name": "sampler", "kind": "vllm", "options": {"weight_transfer": "pigeon"}})
    with pytest.raises(EngineNotStarted, match="pigeon"):
        trainer_info("pigeon", 0, 1)
    options = read_declaration({"name": "sampler", "kind": "vllm"}).options
    assert "weight_transfer_config" not in options.engine_arguments("model")


def register_workers_side():
    """Register the sampler's side of a backend that carries tensors as they are."""
    from dataclasses import dataclass, field

    from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class Init:
        pass

    @dataclass
    class Update:
        tensors: list = field(default_factory=list)

    class Plain(WeightTransferEngine):
        init_info_cls, update_info_cls = Init, Update

        def init_transfer_engine(self, init_info):
            pass

        def start_weight_update(self):
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info):
            self.receive_weights(self.parse_update_info(update_info))  # no device to wait for

        def receive_weights(self, update_info):
            self.model.load_weights(update_info.tensors)

        def finish_weight_update(self):
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self):
            pass

    WeightTransferEngineFactory.register_engine("plain", Plain)


def send(names, directory, spoilt):
    """Send the weights of a directory as a trainer would, in three parts; `spoilt`: other numbers than were meant."""
    import ray
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer import TrainerWeightTransferEngine, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import TrainerInitInfo

    from tasks.engines.actors import NAMESPACE
    from tasks.engines.weight_transfer import RayReplicas, send_weights

    class Info(TrainerInitInfo):
        backend = "plain"

    class Sender(TrainerWeightTransferEngine):
        @classmethod
        def trainer_init(cls, init_info, *, client, source=None):
            client.init_weight_transfer_engine({})
            return cls(client=client, source=source, is_sender=init_info.is_sender)

        def send_weights(self):
            self.client.start_weight_update()
            tensors = [(name, tensor + 0.01 if spoilt else tensor) for name, tensor in self.source]
            shapes = [(name, tuple(tensor.shape)) for name, tensor in tensors]
            assert shapes == [(one.name, one.shape) for one in self.source.metadata()]
            for part in range(3):
                self.client.update_weights({"tensors": tensors[part::3]})
            self.client.finish_weight_update()

    WeightTransferTrainerFactory._registry.pop("plain", None)  # the worker process may have sent before
    WeightTransferTrainerFactory.register_engine("plain", Sender)
    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in names]
    send_weights(load_file(f"{directory}/model.safetensors").items(), RayReplicas(actors), Info(rank=0))


class ReceivingActor(SamplerActor):
    def _build(self):
        register_workers_side()
        return super()._build()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [build_tiny_model(root / f"policy{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def policies(models):
    from safetensors.torch import load_file

    from cgrpo_core.weights import weights_digest

    digests = [weights_digest(load_file(path / "model.safetensors").items()) for path in models]
    return [PolicyRef(policy_version=version, weights_sha256=digest) for version, digest in enumerate(digests)]


@pytest.fixture(scope="module")
def receiving(models, local_ray):
    """One replica whose weights come by the backend of this test, and what has a trainer send to it."""
    from ray import cloudpickle

    from tasks.engines.actors import INFO, NAMESPACE, stop_actors

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    plan = read_declaration({"name": "s", "kind": "vllm", "options": {"max_model_len": 256, "kv_cache_gib": 0.05}})
    options = replace(plan.options, weight_transfer="plain")
    actor = local_ray.remote(concurrency_groups={INFO: 4})(ReceivingActor)
    actor = actor.options(
        name="receiving-0",
        namespace=NAMESPACE,
        max_concurrency=8,
        num_cpus=0,
        runtime_env={"env_vars": options.environment()},
    ).remote(options, str(models[0]))
    local_ray.get(actor.start.remote())
    task = local_ray.remote(num_cpus=0)(send)

    def sender(directory, spoilt=False):
        return lambda names, backend: local_ray.get(task.remote(names, str(directory), spoilt))

    yield VllmSampler({"receiving-0": actor}, options), sender
    stop_actors(["receiving-0"])
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.e2e
def test_weights_that_a_trainer_sends_are_served_as_if_they_had_come_by_file(receiving, models, policies):
    sampler, sender = receiving
    sampler.load(policies[1], str(models[1]))
    by_file = sampler.sample(ASKED, SETTINGS, policies[1])
    assert sampler.load_times().by == "files"
    sampler.load(policies[0], str(models[0]))
    assert sampler.sample(ASKED, SETTINGS, policies[0]) != by_file

    assert sampler.receive(policies[1], sender(models[1])) == sampler.held() == policies[1]
    assert (sampler.load_times().by, sampler.stats().weights_verified) == ("plain", True)
    sent = sampler.sample(ASKED, SETTINGS, policies[1])
    assert [one.token_ids for one in sent] == [one.token_ids for one in by_file]
    assert sent[0].cached_prompt_tokens == 0  # of the old weights nothing was left in the prefix cache
    with pytest.raises(PolicyMismatch):
        sampler.sample(ASKED, SETTINGS, policies[0])


@pytest.mark.e2e
def test_tensors_that_arrive_as_others_than_the_trainer_holds_break_the_engine(receiving, models, policies):
    sampler, sender = receiving
    with pytest.raises(EngineBroken, match="serves other weights than it was given"):
        sampler.receive(policies[0], sender(models[0], spoilt=True))
    with pytest.raises(EngineBroken):
        sampler.held()
