"""A sampler that only takes time: the engine loop of the real one over a core that sleeps as long as a step would take.

A step takes a + b * n + c * p seconds for n requests in the batch and p prompt tokens that join it: the speed model, of
which `overlap.py fit` finds a, b and c from what stages of the real one took. How long a completion gets is a matter of
its seed alone (`length_of`), so that it has the same length however the requests are split into chunks.
"""

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.engines.engine_loop import Finished, Loaded
from tasks.engines.protocol import Completion, LoadTimes, PolicyRef, SampleRequest, SamplingSettings
from tasks.engines.sampler_options import SamplerOptions, check_requests
from tasks.engines.vllm_sampler import SamplerActor

SHORTEST, LONGEST = 16, 512
END_TOKEN = 257  # of tests/tiny_model.py
NO_TIME = LoadTimes(total=0.0, digest=0.0, weights=0.0, reset=0.0, check=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds of a step: by itself, for each request in the batch, for each prompt token that joins it."""

    step: float
    request: float
    prompt_token: float


def length_of(seed: int) -> int:
    """Return the tokens of a completion, by its seed: skewed, half of them below 80, one in forty at the limit."""
    return min(LONGEST, max(SHORTEST, round(random.Random(seed).lognormvariate(4.37, 0.95))))


@dataclass(slots=True)
class _Running:
    key: str
    request: SampleRequest
    length: int
    finish: str
    sampled: int = 0


class SimulatedCore:
    """A Core (engine_loop.py) that samples nothing: every completion is of its length, and ends with a digit."""

    def __init__(self, speed: Speed, options: SamplerOptions) -> None:
        self._speed, self._options = speed, options
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._prompts: set[tuple[int, ...]] = set()  # those in the prefix cache

    def check(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> None:
        """Raise as the real core does."""
        check_requests(requests, settings, self._options.max_model_len)

    def add(self, key: str, request: SampleRequest, settings: SamplingSettings) -> None:
        """Put a request into the batch, or behind those that wait for a place in it."""
        length = min(length_of(request.seed), settings.max_tokens)
        finish = "length" if length == settings.max_tokens else "stop"
        self._waiting.append(_Running(key, request, length, finish))

    def abort(self, keys: Sequence[str]) -> None:
        """Take requests out."""
        self._waiting = deque(one for one in self._waiting if one.key not in keys)
        self._running = [one for one in self._running if one.key not in keys]

    def step(self) -> list[Finished]:
        """Sleep as long as a step takes, and return the requests that have reached their length."""
        joining = 0
        while self._waiting and len(self._running) < self._options.max_num_seqs:
            one = self._waiting.popleft()
            joining += 0 if one.request.prompt_token_ids in self._prompts else len(one.request.prompt_token_ids)
            self._prompts.add(one.request.prompt_token_ids)
            self._running.append(one)
        speed = self._speed
        time.sleep(speed.step + speed.request * len(self._running) + speed.prompt_token * joining)
        for one in self._running:
            one.sampled += 1
        done = [one for one in self._running if one.sampled == one.length]
        self._running = [one for one in self._running if one.sampled < one.length]
        return [_finished(one) for one in done]

    def tokens_in_flight(self) -> int:
        """Return the tokens of unfinished requests."""
        return sum(one.sampled for one in list(self._running))

    def check_weights(self, weights_dir: str) -> None:
        """Take any weights."""

    def load(self, policy: PolicyRef, weights_dir: str) -> Loaded:
        """Forget the prompts, as the prefix cache does."""
        self._prompts.clear()
        return Loaded(verified=True, times=NO_TIME)


def _finished(one: _Running) -> Finished:
    text = "a" * (one.length - 3) + f" {one.request.seed % 4 + 1}"
    completion = Completion(
        request_id=one.request.request_id,
        text=text,
        token_ids=(*text.encode(), END_TOKEN),
        logprobs=(-5.0,) * one.length,
        finish_reason=one.finish,  # type: ignore[arg-type]
    )
    prompt = len(one.request.prompt_token_ids)
    return Finished(key=one.key, completion=completion, error=None, prompt_tokens=prompt, cached_prompt_tokens=0)


class SimulatedActor(SamplerActor):
    """One replica of a sampler, with that core."""

    def __init__(self, options: SamplerOptions, base_model_dir: str, speed: Speed) -> None:
        super().__init__(options, base_model_dir)
        self._speed = speed

    def _build(self) -> Any:
        return SimulatedCore(self._speed, self._options)
