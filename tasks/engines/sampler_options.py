"""The declaration of a sampler in pipelines.yaml, read and checked. Nothing here imports vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from cgrpo_core.errors import UserError
from tasks.engines.deadlines import DEADLINE_S, check_deadline
from tasks.engines.faults import PromptTooLong, RequestInvalid
from tasks.engines.protocol import SampleRequest, SamplingSettings

PLACEMENT_ONLY = frozenset({"num_threads", "kv_cache_gib", "gpu_memory_utilization", "deadline_s"})
"""Options that change speed and memory, never which completions are possible: another value is the same engine."""

TRANSFERS = ("files", "ipc", "nccl")
CPU_THREADS = 2  # shared among the replicas of a sampler without a GPU, unless options.num_threads says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerOptions:
    """Options of one replica.

    max_model_len: prompt and completion tokens together. num_threads: OpenMP threads, on the CPU only. kv_cache_gib:
    memory for keys and values; None leaves it to gpu_memory_utilization, so it has a default on the CPU alone.
    max_num_seqs: requests in one batch. block_size: tokens of a block of the prefix cache; vLLM's CPU default is 128,
    and a prompt shorter than a block never hits. deadline_s: an engine that samples and gives no token for so long is
    taken for hung, and killed. weight_transfer: `files`, or the backend of vLLM's weight-transfer API by which a
    trainer sends its weights: `ipc` on the same device, `nccl` from another. on_cpu: as resources say.
    """

    dtype: str = "float32"
    max_model_len: int = 2048
    num_threads: int = CPU_THREADS
    kv_cache_gib: float | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = True
    max_num_seqs: int = 256
    block_size: int = 32
    enable_prefix_caching: bool = True
    deadline_s: float = DEADLINE_S
    weight_transfer: str = "files"
    on_cpu: bool = True

    def engine_arguments(self, base_model_dir: str) -> dict[str, Any]:
        """Return the arguments of vLLM's EngineArgs.

        On the CPU a prompt is never split over steps: a split prompt rewinds the generator of its request, which CPU
        generators cannot do ("CPU Generator does not use offset"). So one step must take a whole prompt.
        """
        arguments: dict[str, Any] = {
            "model": base_model_dir,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "enforce_eager": self.enforce_eager,
            "enable_prefix_caching": self.enable_prefix_caching,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "logprobs_mode": "processed_logprobs",  # of the distribution sampled from: temperature and top_p applied
            "disable_log_stats": True,
            "trust_remote_code": False,
        }
        if self.on_cpu:
            arguments |= {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(32768, self.max_model_len),
                "block_size": self.block_size,
            }
        if self.weight_transfer != "files":
            arguments["weight_transfer_config"] = {"backend": self.weight_transfer}
        if self.kv_cache_gib is not None:
            arguments["kv_cache_memory_bytes"] = int(self.kv_cache_gib * 2**30)
        return arguments

    def environment(self) -> dict[str, str]:
        """Return the environment that the actor's process must start with, before it imports torch."""
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if self.on_cpu:
            environment |= {
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding shares cores badly with whatever else runs
                "OMP_NUM_THREADS": str(self.num_threads),
                "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads take up to 4 times the CPU when cores are shared
                "GLOO_SOCKET_IFNAME": "lo",
                # oneDNN keeps a compiled kernel for each size of batch, 1024 of them unless it is told: 0.9 MiB more in
                # every iteration of a tiny model, for hundreds of iterations.
                "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
            }
        return environment


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerPlan:
    """A whole declaration: how many replicas, where, and the options of each."""

    replicas: int
    num_cpus: float
    num_gpus: float
    options: SamplerOptions


def read_declaration(declaration: Mapping[str, Any]) -> SamplerPlan:
    """Return the plan of a sampler. Raises UserError that names the key path for anything that cannot be."""
    where = f"engines.{declaration.get('name', 'sampler')}"
    replicas = int(declaration.get("replicas", 1))
    if replicas < 1:
        raise UserError(f"{where}.replicas is {replicas}", "it is 1 or more")
    resources = dict(declaration.get("resources") or {})
    if unknown := sorted(set(resources) - {"num_cpus", "num_gpus"}):
        raise UserError(f"{where}.resources has no {unknown[0]!r}", "it has num_cpus, num_gpus")
    num_gpus = float(resources.get("num_gpus", 0))
    given = dict(declaration.get("options") or {})
    if not num_gpus:
        given = {"kv_cache_gib": 1.0, "num_threads": max(1, CPU_THREADS // replicas), **given}
    options = _read_options(f"{where}.options", given, on_cpu=not num_gpus)
    return SamplerPlan(
        replicas=replicas, num_cpus=float(resources.get("num_cpus", 0)), num_gpus=num_gpus, options=options
    )


def identity_options(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options by which two engines differ in what they can answer, with defaults filled in."""
    options = asdict(read_declaration(declaration).options)
    return {name: value for name, value in options.items() if name not in PLACEMENT_ONLY}


def check_requests(
    requests: Sequence[SampleRequest], settings: SamplingSettings, max_model_len: int, vocabulary: int | None = None
) -> None:
    """Raise RequestInvalid or PromptTooLong, naming the request, before anything is sampled."""
    if settings.max_tokens < 1:
        raise RequestInvalid(f"max_tokens is {settings.max_tokens}", "a completion has at least one token")
    if settings.temperature < 0 or not 0 < settings.top_p <= 1:
        raise RequestInvalid(
            f"temperature {settings.temperature}, top_p {settings.top_p}", "temperature >= 0 and 0 < top_p <= 1"
        )
    seen: set[str] = set()
    for request in requests:
        if request.request_id in seen:
            raise RequestInvalid(f"request {request.request_id} occurs twice in one call", "give each an id of its own")
        seen.add(request.request_id)
        _check_prompt(request, settings, max_model_len, vocabulary)


def _check_prompt(
    request: SampleRequest, settings: SamplingSettings, max_model_len: int, vocabulary: int | None
) -> None:
    length = len(request.prompt_token_ids)
    if not length:
        raise RequestInvalid(f"request {request.request_id} has an empty prompt", "a prompt has at least one token")
    if length + settings.max_tokens > max_model_len:
        raise PromptTooLong(
            f"request {request.request_id}: {length} prompt tokens and up to {settings.max_tokens} new ones exceed the "
            f"sampler's max_model_len of {max_model_len}",
            f"set engines.sampler.options.max_model_len to {length + settings.max_tokens} or more, or sample fewer",
        )
    worst = max(request.prompt_token_ids)
    if min(request.prompt_token_ids) < 0 or (vocabulary is not None and worst >= vocabulary):
        raise RequestInvalid(
            f"request {request.request_id} has a token id outside 0..{vocabulary}", "use the tokenizer of the model"
        )


def _read_options(where: str, given: dict[str, Any], *, on_cpu: bool) -> SamplerOptions:
    known = {field.name for field in fields(SamplerOptions)} - {"on_cpu"}
    if unknown := sorted(set(given) - known):
        raise UserError(f"{where} has no {unknown[0]!r}", f"it has {', '.join(sorted(known))}")
    options = SamplerOptions(**given, on_cpu=on_cpu)
    if options.dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"{where}.dtype is {options.dtype}", "it is float32, bfloat16 or float16")
    for name in ("max_model_len", "num_threads", "max_num_seqs", "block_size"):
        if not isinstance(value := getattr(options, name), int) or value < 1:
            raise UserError(f"{where}.{name} is {value!r}", "it is a whole number of 1 or more")
    if options.weight_transfer not in TRANSFERS:
        raise UserError(f"{where}.weight_transfer is {options.weight_transfer!r}", f"it is {', '.join(TRANSFERS)}")
    if options.weight_transfer != "files" and on_cpu:
        raise UserError(
            f"{where}.weight_transfer is {options.weight_transfer}, from GPU to GPU, and the sampler has none",
            "give it resources.num_gpus, or leave it at files",
        )
    if not 0 < options.gpu_memory_utilization <= 1:
        raise UserError(f"{where}.gpu_memory_utilization is {options.gpu_memory_utilization}", "it is in (0, 1]")
    check_deadline(where, options.deadline_s)
    if options.kv_cache_gib is not None and not options.kv_cache_gib > 0:
        raise UserError(f"{where}.kv_cache_gib is {options.kv_cache_gib}", "it is above 0, or left out on a GPU")
    return options
