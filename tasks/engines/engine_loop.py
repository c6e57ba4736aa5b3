"""One thread drives the engine; any number of callers share its batch.

Callers put calls on a queue and wait. The loop admits calls in their order, steps the engine, and resolves each call
when the last of its requests is done. Weights are loaded between batches: a load waits until nothing is in flight, and
calls that came after it wait for the load. A call fails alone; a failing step fails every call and breaks the engine.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tasks.engines.faults import CompletionFailed, EngineBroken
from tasks.engines.protocol import (
    Completion,
    EngineStats,
    LoadTimes,
    PolicyMismatch,
    PolicyRef,
    SampleRequest,
    SamplingSettings,
)

if TYPE_CHECKING:
    from tasks.engines.weight_transfer import Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request that left the batch: its completion, or what went wrong with it alone."""

    key: str
    completion: Completion | None
    error: str | None
    prompt_tokens: int
    cached_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A load that succeeded. verified: all that is served was compared with what was read."""

    verified: bool
    times: LoadTimes


class Core(Protocol):
    """What the loop drives. All methods but `tokens_in_flight` are called from the loop's thread only."""

    def check(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> None:
        """Raise for requests that cannot be answered."""

    def add(self, key: str, request: SampleRequest, settings: SamplingSettings) -> None:
        """Put a request into the batch."""

    def abort(self, keys: Sequence[str]) -> None:
        """Take requests out of the batch."""

    def step(self) -> list[Finished]:
        """Sample one token for each request in the batch; return those that are done."""

    def tokens_in_flight(self) -> int:
        """Return how many tokens the requests in the batch have so far. Callable from any thread."""

    def check_weights(self, weights_dir: str) -> None:
        """Raise for a directory that cannot be loaded, with nothing touched."""

    def load(self, policy: PolicyRef, weights: "str | Transfer") -> Loaded:
        """Serve the weights of a directory, or those that a trainer sends meanwhile.

        Raises PolicyMismatch when their digest is another; whatever else it raises breaks the engine.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerStats(EngineStats):
    """Counters since the engine started; those of replicas are added up, so busy_seconds are seconds of one replica.

    weights_verified: after the last load, what is served was compared with what was read, tensor by tensor.
    """

    requests: int
    requests_done: int
    cached_prompt_tokens: int
    loads: int
    weights_verified: bool


NOTHING_YET = SamplerStats(
    prompt_tokens=0,
    completion_tokens=0,
    busy_seconds=0.0,
    load_seconds=0.0,
    requests=0,
    requests_done=0,
    cached_prompt_tokens=0,
    loads=0,
    weights_verified=False,
)


@dataclass(slots=True)
class _SampleCall:
    requests: Sequence[SampleRequest]
    settings: SamplingSettings
    expect: PolicyRef
    done: Future[list[Completion]] = field(default_factory=Future)
    completions: dict[str, Completion] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _LoadCall:
    policy: PolicyRef
    weights: "str | Transfer"
    done: Future[LoadTimes | None] = field(default_factory=Future)


class EngineLoop:
    """Owns the thread and the engine that it builds. Methods may be called from any thread."""

    def __init__(self, build: Callable[[], Core]) -> None:
        self._arriving: queue.SimpleQueue[_SampleCall | _LoadCall] = queue.SimpleQueue()
        self._waiting: deque[_SampleCall | _LoadCall] = deque()
        self._flying: dict[str, _SampleCall] = {}
        self._held: PolicyRef | None = None
        self._broken: str | None = None
        self._core: Core | None = None
        self._started: Future[None] = Future()
        self._gate = threading.Lock()  # no call may slip in between the break-down and the failing of all calls
        self._keys = 0
        self._counts = dict.fromkeys(("prompt", "cached", "completion", "requests", "done", "loads"), 0)
        self._busy_seconds = self._load_seconds = 0.0
        self._verified = False
        self._thread = threading.Thread(target=self._run, args=(build,), name="engine-loop", daemon=True)
        self._thread.start()

    def wait_until_started(self) -> None:
        """Return when the engine is there; raise what building it raised."""
        self._started.result()

    def held(self) -> PolicyRef | None:
        """Return the policy being served, or None. Raises EngineBroken."""
        if self._broken is not None:
            raise EngineBroken(self._broken)
        return self._held

    def load(self, policy: PolicyRef, weights: "str | Transfer") -> LoadTimes | None:
        """Serve the weights of a directory, or of a transfer, once nothing is in flight; None: they were served."""
        call = _LoadCall(policy, weights)
        self._put(call)
        return call.done.result()

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, expect: PolicyRef
    ) -> list[Completion]:
        """Return one completion a request, in their order, sampled in one batch with whatever else is asked."""
        if not requests:
            return []
        call = _SampleCall(requests, settings, expect)
        self._put(call)
        return call.done.result()

    def stats(self) -> SamplerStats:
        """Return the counters."""
        core, counts = self._core, self._counts
        return SamplerStats(
            prompt_tokens=counts["prompt"],
            completion_tokens=counts["completion"] + (core.tokens_in_flight() if core else 0),
            busy_seconds=self._busy_seconds,
            load_seconds=self._load_seconds,
            requests=counts["requests"],
            requests_done=counts["done"],
            cached_prompt_tokens=counts["cached"],
            loads=counts["loads"],
            weights_verified=self._verified,
        )

    def _put(self, call: _SampleCall | _LoadCall) -> None:
        with self._gate:
            if self._broken is not None:
                raise EngineBroken(self._broken)
            self._arriving.put(call)

    def _run(self, build: Callable[[], Core]) -> None:
        try:
            core = self._core = build()
        except BaseException as error:  # noqa: BLE001 - it is raised to whoever waits for the start
            self._started.set_exception(error)
            self._break(f"the engine did not start: {error}")
            return
        self._started.set_result(None)
        try:
            while True:
                self._turn(core)
        except Exception as error:  # noqa: BLE001 - whatever it is, every waiting caller must hear of it
            self._break(f"{type(error).__name__}: {error}")

    def _turn(self, core: Core) -> None:
        self._collect()
        while self._waiting and self._admit(core, self._waiting[0]):
            self._waiting.popleft()
        if not self._flying:
            return
        began = time.perf_counter()
        finished = core.step()
        for one in finished:
            self._resolve(core, one)
        self._busy_seconds += time.perf_counter() - began

    def _collect(self) -> None:
        """Take what has arrived; sleep only when there is nothing to do."""
        if not self._flying and not self._waiting:
            self._waiting.append(self._arriving.get())
        while not self._arriving.empty():
            self._waiting.append(self._arriving.get())

    def _admit(self, core: Core, call: _SampleCall | _LoadCall) -> bool:
        """Start a call; False when it must wait: a load waits for the batch to empty, and holds up what came later."""
        if isinstance(call, _LoadCall):
            if self._flying:
                return False
            self._load(core, call)
            return True
        if call.expect != self._held:
            call.done.set_exception(PolicyMismatch(f"the sampler holds {self._held}, the call expects {call.expect}"))
            return True
        try:
            core.check(call.requests, call.settings)
            for request in call.requests:
                self._keys += 1
                key = f"{self._keys}:{request.request_id}"
                core.add(key, request, call.settings)
                call.keys.append(key)
        except Exception as error:  # noqa: BLE001 - the request was refused; its call fails, the batch goes on
            core.abort(call.keys)
            call.done.set_exception(error)
            return True
        self._flying.update(dict.fromkeys(call.keys, call))
        self._counts["requests"] += len(call.keys)
        return True

    def _load(self, core: Core, call: _LoadCall) -> None:
        if isinstance(call.weights, str) and self._held and self._held.weights_sha256 == call.policy.weights_sha256:
            self._held = call.policy  # the same weights under another version: an update without a gradient
            call.done.set_result(None)
            return
        try:
            if isinstance(call.weights, str):
                core.check_weights(call.weights)
        except Exception as error:  # noqa: BLE001 - refused before a tensor was touched: the caller's to mend
            call.done.set_exception(error)
            return
        began = time.perf_counter()
        self._held, self._verified = None, False
        try:
            loaded = core.load(call.policy, call.weights)
        except PolicyMismatch as error:
            call.done.set_exception(error)
            return
        self._held, self._verified = call.policy, loaded.verified
        self._counts["loads"] += 1
        self._load_seconds += time.perf_counter() - began
        call.done.set_result(loaded.times)

    def _resolve(self, core: Core, one: Finished) -> None:
        call = self._flying.pop(one.key, None)
        if call is None:
            return  # its call has failed already, by another request of the same step
        self._counts["done"] += 1
        self._counts["prompt"] += one.prompt_tokens
        self._counts["cached"] += one.cached_prompt_tokens
        if one.completion is None:
            others = [key for key in call.keys if self._flying.pop(key, None) is not None]
            core.abort(others)
            call.done.set_exception(CompletionFailed(f"request {one.key.partition(':')[2]}: {one.error}"))
            return
        self._counts["completion"] += len(one.completion.token_ids)
        call.completions[one.key] = one.completion
        if len(call.completions) == len(call.keys):
            call.done.set_result([call.completions[key] for key in call.keys])

    def _break(self, reason: str) -> None:
        with self._gate:
            self._broken, self._held = reason, None
            calls = {id(call): call for call in (*self._flying.values(), *self._waiting)}
            while not self._arriving.empty():
                call = self._arriving.get()
                calls[id(call)] = call
        for call in calls.values():
            if not call.done.done():
                call.done.set_exception(EngineBroken(reason))
