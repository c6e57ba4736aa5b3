"""The declaration of a sampler: mistakes are named before anything starts, and requests before anything is sampled."""

import pytest

from cgrpo_core.errors import UserError
from tasks.engines.faults import PromptTooLong, RequestInvalid
from tasks.engines.protocol import SampleRequest, SamplingSettings
from tasks.engines.sampler_options import check_requests, identity_options, read_declaration


def declare(**changes):
    return {"name": "sampler", "kind": "vllm", **changes}


def request(request_id: str, *token_ids: int) -> SampleRequest:
    return SampleRequest(request_id=request_id, prompt_token_ids=token_ids, seed=1)


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 4, **changes})


def test_a_declaration_without_options_is_one_cpu_replica_in_float32():
    plan = read_declaration(declare())
    assert (plan.replicas, plan.num_cpus, plan.num_gpus) == (1, 0, 0)
    assert plan.options.dtype == "float32"
    assert plan.options.on_cpu


def test_replicas_on_the_cpu_share_its_threads():
    assert read_declaration(declare()).options.num_threads == 2
    assert read_declaration(declare(replicas=2)).options.num_threads == 1
    assert read_declaration(declare(replicas=2, options={"num_threads": 4})).options.num_threads == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"max_model_length": 5}}, "engines.sampler.options has no 'max_model_length'"),
        ({"options": {"dtype": "int4"}}, "engines.sampler.options.dtype is int4"),
        ({"options": {"max_model_len": 0}}, "engines.sampler.options.max_model_len is 0"),
        ({"options": {"max_num_seqs": "many"}}, "engines.sampler.options.max_num_seqs is 'many'"),
        ({"options": {"kv_cache_gib": -1}}, "engines.sampler.options.kv_cache_gib is -1"),
        ({"options": {"gpu_memory_utilization": 2}}, "engines.sampler.options.gpu_memory_utilization is 2"),
        ({"options": {"on_cpu": False}}, "engines.sampler.options has no 'on_cpu'"),
        ({"resources": {"cpus": 1}}, "engines.sampler.resources has no 'cpus'"),
        ({"replicas": 0}, "engines.sampler.replicas is 0"),
    ],
)
def test_a_mistake_in_the_declaration_is_named_with_its_key_path(changes, named):
    with pytest.raises(UserError) as caught:
        read_declaration(declare(**changes))
    assert named in str(caught.value)
    assert caught.value.hint


def test_on_the_cpu_a_prompt_is_never_split_and_the_kv_cache_is_bounded():
    arguments = read_declaration(declare(options={"max_model_len": 512})).options.engine_arguments("model")
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] >= 512
    assert arguments["kv_cache_memory_bytes"] == 2**30
    assert arguments["logprobs_mode"] == "processed_logprobs"


def test_on_a_gpu_memory_and_batching_are_left_to_vllm():
    options = read_declaration(declare(resources={"num_gpus": 0.5}, options={"gpu_memory_utilization": 0.35})).options
    arguments = options.engine_arguments("model")
    assert arguments["gpu_memory_utilization"] == 0.35
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill", "block_size"} & set(arguments)
    assert "OMP_NUM_THREADS" not in options.environment()


def test_the_engine_listens_on_loopback_only_and_runs_in_the_actors_process():
    environment = read_declaration(declare(options={"num_threads": 2})).options.environment()
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_NUM_THREADS"] == "2"


def test_threads_and_memory_do_not_make_another_engine_but_dtype_does():
    base = identity_options(declare())
    assert identity_options(declare(options={"num_threads": 2, "kv_cache_gib": 4})) == base
    assert identity_options(declare(replicas=3)) == base
    assert identity_options(declare(options={"dtype": "bfloat16"})) != base
    assert identity_options(declare(options={"max_model_len": 4096})) != base


def test_a_prompt_that_leaves_no_room_names_its_request_and_what_to_set():
    requests = [request("short", 1, 2), request("long", *range(7))]
    with pytest.raises(PromptTooLong, match="request long: 7 prompt tokens") as caught:
        check_requests(requests, settings(max_tokens=4), max_model_len=10)
    assert "max_model_len to 11" in caught.value.hint
    check_requests(requests, settings(max_tokens=3), max_model_len=10)


@pytest.mark.parametrize(
    ("requests", "changes", "named"),
    [
        ([request("a", 1), request("a", 2)], {}, "request a occurs twice"),
        ([request("a")], {}, "request a has an empty prompt"),
        ([request("a", 1, 99)], {}, "request a has a token id outside 0..50"),
        ([request("a", -1)], {}, "request a has a token id outside 0..50"),
        ([request("a", 1)], {"max_tokens": 0}, "max_tokens is 0"),
        ([request("a", 1)], {"temperature": -0.1}, "temperature -0.1"),
        ([request("a", 1)], {"top_p": 0.0}, "top_p 0.0"),
    ],
)
def test_a_request_that_no_engine_could_answer_is_refused(requests, changes, named):
    with pytest.raises(RequestInvalid) as caught:
        check_requests(requests, settings(**changes), max_model_len=100, vocabulary=50)
    assert named in str(caught.value)
