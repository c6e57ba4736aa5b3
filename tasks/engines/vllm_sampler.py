"""The sampler as its callers see it: a handle over one named Ray actor a replica. Importing this imports no vLLM.

Each actor answers many callers at once from one batch (engine_loop.py). Actors are never restarted by Ray: a restarted
one would hold no policy. Which replica samples a request changes nothing: a completion depends on the weights, the
prompt, the settings and the request's own seed.
"""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tasks.engines.actors import INFO, NAMESPACE, call_all, find_actor, stop_actors
from tasks.engines.deadlines import Pulse
from tasks.engines.engine_loop import NOTHING_YET, EngineLoop, SamplerStats
from tasks.engines.memory import largest, peak_memory
from tasks.engines.protocol import Completion, LoadTimes, PolicyRef, SampleRequest, SamplingSettings
from tasks.engines.sampler_options import SamplerOptions, check_requests, read_declaration

if TYPE_CHECKING:
    from tasks.engines.weight_transfer import Transfer

CALLS_AT_ONCE = 64


class SamplerActor:
    """One replica, in a process of its own. Its methods run in threads; the engine has one thread for itself."""

    def __init__(self, options: SamplerOptions, base_model_dir: str) -> None:
        self._options, self._base_model_dir = options, base_model_dir
        self._starting = threading.Lock()
        self._loop: EngineLoop | None = None
        self._transfers: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._transfer: Transfer | None = None  # the one under way

    def start(self) -> None:
        """Build the engine, once; who comes second waits for it. Raises EngineNotStarted."""
        with self._starting:
            if self._loop is None:
                self._loop = EngineLoop(self._build)
            loop = self._loop
        loop.wait_until_started()

    def held(self) -> PolicyRef | None:
        """Return the policy being served, or None."""
        return self._engine().held()

    def load(self, policy: PolicyRef, weights_dir: str) -> LoadTimes | None:
        """Serve the weights in `weights_dir`."""
        return self._engine().load(policy, weights_dir)

    def receive(self, policy: PolicyRef) -> LoadTimes | None:
        """Serve the weights that a trainer sends by `transfer` meanwhile."""
        from tasks.engines.weight_transfer import Transfer

        own = Transfer()
        self._transfers.put(own)
        return self._engine().load(policy, own)

    def transfer(self, method: str, argument: Any) -> None:
        """Carry out one call of the trainer's, made after `receive`."""
        if self._transfer is None:
            self._transfer = self._transfers.get(timeout=self._options.deadline_s)
        try:
            self._transfer.call(method, argument)
        finally:
            if method == "accept":
                self._transfer = None

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, expect: PolicyRef
    ) -> list[Completion]:
        """Return one completion a request, in their order."""
        return self._engine().sample(requests, settings, expect)

    def stats(self) -> SamplerStats:
        """Return the counters; zeros before the start, so that a display never waits for it."""
        return self._loop.stats() if self._loop is not None else NOTHING_YET

    def peak_rss_bytes(self) -> int:
        """Return the largest resident set of this process so far."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_memory(self) -> dict[str, int]:
        """Return the largest use of memory, and of a GPU, by this process so far."""
        return peak_memory()

    def _engine(self) -> EngineLoop:
        self.start()
        assert self._loop is not None
        return self._loop

    def _build(self) -> Any:
        from tasks.engines.vllm_core import VllmCore

        return VllmCore(self._options, self._base_model_dir)


class VllmSampler:
    """A Sampler (protocol.py) over replicas: weights go to all, requests to one each, dealt out in turn."""

    def __init__(self, actors: Mapping[str, Any], options: SamplerOptions) -> None:
        self._actors = dict(actors)
        self._options = options
        self._load_times: LoadTimes | None = None

    def held(self) -> PolicyRef | None:
        """Return the policy that every replica serves, or None. Raises EngineLost, EngineBroken."""
        calls = {name: actor.held.options(concurrency_group=INFO).remote() for name, actor in self._named()}
        held = call_all(calls, self._pulse())
        return held[0] if all(one == held[0] for one in held) else None

    def load(self, policy: PolicyRef, weights_dir: str) -> PolicyRef:
        """Serve the weights in `weights_dir` on every replica, each when its batch is empty.

        Raises PolicyMismatch if their digest is not the policy's; the sampler then holds nothing. Raises WeightsMissing
        with nothing touched, EngineBroken if the engine failed or serves other tensors than it was given, EngineLost.
        """
        self._loaded({name: actor.load.remote(policy, weights_dir) for name, actor in self._named()})
        return policy

    def receive(self, policy: PolicyRef, send: Callable[[list[str], str], None]) -> PolicyRef:
        """Serve the weights that `send(actor names, backend)` has a trainer send to every replica.

        Raises what either side does; the sampler then holds nothing, or is broken.
        """
        loads = {name: actor.receive.remote(policy) for name, actor in self._named()}
        send(list(self._actors), self._options.weight_transfer)
        self._loaded(loads)
        return policy

    @property
    def weight_transfer(self) -> str:
        """How the declaration would have weights come: files, or a backend of vLLM's weight-transfer API."""
        return self._options.weight_transfer

    def _loaded(self, loads: Mapping[str, Any]) -> None:
        times: list[LoadTimes | None] = call_all(loads, self._pulse())
        self._load_times = max((one for one in times if one is not None), key=lambda one: one.total, default=None)

    def load_times(self) -> LoadTimes | None:
        """Return what the last load by this handle took, on the slowest replica; None if no weights were read."""
        return self._load_times

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, expect: PolicyRef
    ) -> list[Completion]:
        """Return one completion a request, in the order of the requests.

        Raises PromptTooLong or RequestInvalid before anything is sampled; PolicyMismatch if a replica does not serve
        `expect`; CompletionFailed, EngineBroken, EngineLost (which names the actor) when no completion can be had.
        """
        check_requests(requests, settings, self._options.max_model_len)
        count = len(self._actors)
        shares = [list(requests[place::count]) for place in range(count)]
        calls = {
            name: actor.sample.remote(share, settings, expect)
            for (name, actor), share in zip(self._named(), shares, strict=True)
            if share
        }
        answers: list[list[Completion]] = call_all(calls, self._pulse(_work))
        return [answers[place % count][place // count] for place in range(len(requests))]

    def stats(self) -> SamplerStats:
        """Return the counters, added up over the replicas."""
        calls = {name: actor.stats.options(concurrency_group=INFO).remote() for name, actor in self._named()}
        every = call_all(calls, self._pulse())
        return add_stats(every)

    def progress(self) -> dict[str, float]:
        """Return requests_total, requests_done, tokens (of unfinished requests too) and seconds, since the start.

        Callable while others sample; the figures of a stretch of time are the difference of two calls.
        """
        return as_progress(self.stats())

    def peak_rss_bytes(self) -> list[int]:
        """Return the largest resident set so far of each replica's process."""
        return call_all({name: actor.peak_rss_bytes.remote() for name, actor in self._named()}, self._pulse())

    def _pulse(self, counts: Callable[[SamplerStats], object] | None = None) -> Pulse:
        return _pulse_of(self._actors, self._options.deadline_s, counts)

    def peak_memory(self) -> dict[str, int]:
        """Return the peaks of the replica that needs most."""
        calls = {name: actor.peak_memory.options(concurrency_group=INFO).remote() for name, actor in self._named()}
        return largest(call_all(calls, self._pulse()))

    def _named(self) -> list[tuple[str, Any]]:
        return list(self._actors.items())


def _work(stats: SamplerStats) -> object:
    """What changes while an engine samples: tokens, requests that came and went, loads that sampling waits for."""
    return stats.completion_tokens, stats.requests, stats.requests_done, stats.loads


def _pulse_of(
    actors: Mapping[str, Any], deadline_s: float, counts: Callable[[SamplerStats], object] | None = None
) -> Pulse:
    """An engine that is being built or loaded shows no tokens: that its actor answers is then enough."""
    return Pulse(actors, lambda actor: actor.stats.options(concurrency_group=INFO).remote(), deadline_s, counts)


def add_stats(every: Sequence[SamplerStats]) -> SamplerStats:
    """Return the sums of the counters of replicas; verified if all are."""
    rows = [asdict(one) for one in every]
    verified = all(row.pop("weights_verified") for row in rows)
    return SamplerStats(weights_verified=verified, **{name: sum(row[name] for row in rows) for name in rows[0]})


def as_progress(stats: SamplerStats) -> dict[str, float]:
    """Return the counters that a progress display shows."""
    return {
        "requests_total": stats.requests,
        "requests_done": stats.requests_done,
        "tokens": stats.completion_tokens,
        "seconds": stats.busy_seconds,
    }


def start_sampler(name: str, declaration: Mapping[str, Any], base_model_dir: str, detached: bool = True) -> VllmSampler:
    """Return the sampler of that name with its engines built, starting the replicas `{name}-{i}` that are not there.

    Callers at the same moment get the same actors. detached: the actors outlive who made them, and end with the Ray
    cluster; an actor that is not dies with the worker process that made it, which for a Prefect task on Ray is soon.
    Raises UserError for a declaration that cannot be and EngineNotStarted; whatever was started is then ended.
    """
    import ray

    plan = read_declaration(declaration)
    actor_class = ray.remote(concurrency_groups={INFO: 4})(SamplerActor)
    actors = {
        replica: actor_class.options(
            name=replica,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached" if detached else None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus,
            runtime_env={"env_vars": plan.options.environment()},
        ).remote(plan.options, base_model_dir)
        for replica in _replica_names(name, plan.replicas)
    }
    try:
        starts = {replica: actor.start.remote() for replica, actor in actors.items()}
        call_all(starts, _pulse_of(actors, plan.options.deadline_s))
    except Exception:  # whatever it was: replicas that are half started must not be found by the next lease
        stop_actors(list(actors))
        raise
    return VllmSampler(actors, plan.options)


def find_sampler(name: str, declaration: Mapping[str, Any]) -> VllmSampler | None:
    """Return the running sampler of that name, or None if any of its replicas is not there."""
    plan = read_declaration(declaration)
    actors = {replica: find_actor(replica) for replica in _replica_names(name, plan.replicas)}
    return None if None in actors.values() else VllmSampler(actors, plan.options)


def stop_sampler(name: str, declaration: Mapping[str, Any]) -> None:
    """End all replicas of that name, and wait until their names are free."""
    stop_actors(_replica_names(name, read_declaration(declaration).replicas))


def _replica_names(name: str, replicas: int) -> list[str]:
    return [f"{name}-{place}" for place in range(replicas)]
