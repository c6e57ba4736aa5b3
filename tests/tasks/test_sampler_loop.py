"""The engine loop, driven over a stand-in for vLLM that a test can hold and release step by step."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tasks.engines.engine_loop import EngineLoop, Finished, Loaded
from tasks.engines.faults import CompletionFailed, EngineBroken, EngineNotStarted, WeightsMissing
from tasks.engines.protocol import (
    Completion,
    LoadTimes,
    PolicyMismatch,
    PolicyRef,
    SampleRequest,
    SamplingSettings,
)

FIRST = PolicyRef(policy_version=0, weights_sha256="aa")
SECOND = PolicyRef(policy_version=1, weights_sha256="bb")
TIMES = LoadTimes(total=1.0, digest=0.5, weights=0.75, reset=0.125, check=0.0625)
TWO_TOKENS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=2)


class StandIn:
    """Samples `max_tokens` tokens a request, one a step; each step waits for `go`. A digest is its directory."""

    def __init__(self) -> None:
        self.go, self.stepping = threading.Semaphore(0), threading.Semaphore(0)
        self.batch: dict[str, int] = {}
        self.requests: dict[str, SampleRequest] = {}
        self.batch_sizes: list[int] = []
        self.loaded: list[str] = []
        self.fail_step = False

    def check(self, requests, settings):
        if any(request.seed == 13 for request in requests):
            raise ValueError("seed 13 is refused")

    def add(self, key, request, settings):
        if request.seed == 14:
            raise ValueError("seed 14 is refused late")
        self.batch[key], self.requests[key] = settings.max_tokens, request

    def abort(self, keys):
        for key in keys:
            self.batch.pop(key, None)

    def step(self):
        self.stepping.release()
        self.go.acquire()
        if self.fail_step:
            raise RuntimeError("out of memory")
        self.batch_sizes.append(len(self.batch))
        self.batch = {key: left - 1 for key, left in self.batch.items()}
        done = [key for key, left in self.batch.items() if not left]
        self.abort(done)
        return [self._finished(key) for key in done]

    def _finished(self, key):
        request, aborted = self.requests[key], self.requests[key].seed == 15
        completion = Completion(
            request_id=request.request_id,
            text=self.loaded[-1],
            token_ids=(request.seed, 0),
            logprobs=(-1.0, -1.0),
            finish_reason="length",
        )
        return Finished(
            key=key,
            completion=None if aborted else completion,
            error="it ended with finish_reason abort" if aborted else None,
            prompt_tokens=len(request.prompt_token_ids),
            cached_prompt_tokens=0,
        )

    def tokens_in_flight(self):
        return 0

    def check_weights(self, weights_dir):
        if weights_dir == "absent":
            raise WeightsMissing("absent has no safetensors files")

    def load(self, policy, weights_dir):
        if weights_dir == "broken":
            raise RuntimeError("half a tensor")
        self.loaded.append(weights_dir)
        if weights_dir != policy.weights_sha256:
            raise PolicyMismatch(weights_dir)
        return Loaded(verified=True, times=TIMES)


def ask(*seeds: int) -> list[SampleRequest]:
    return [SampleRequest(request_id=f"r{seed}", prompt_token_ids=(1, 2, 3), seed=seed) for seed in seeds]


@pytest.fixture
def core() -> StandIn:
    return StandIn()


@pytest.fixture
def loop(core: StandIn) -> EngineLoop:
    loop = EngineLoop(lambda: core)
    loop.wait_until_started()
    loop.load(FIRST, "aa")
    return loop


@pytest.fixture
def callers():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def sampling(callers: ThreadPoolExecutor, loop: EngineLoop, *seeds: int, expect=FIRST) -> Future:
    return callers.submit(loop.sample, ask(*seeds), TWO_TOKENS, expect)


def test_callers_at_the_same_time_share_a_batch_and_each_gets_its_own(core, loop, callers):
    first = sampling(callers, loop, 1, 2)
    core.stepping.acquire()  # the first call is in the batch and its first step waits
    second = sampling(callers, loop, 3, 4, 5)
    while loop._arriving.empty():
        threading.Event().wait(0.001)
    core.go.release(4)
    assert [one.request_id for one in first.result()] == ["r1", "r2"]
    assert [one.token_ids[0] for one in second.result()] == [3, 4, 5]
    assert core.batch_sizes == [2, 5, 3]
    assert loop.stats().requests_done == 5
    assert loop.stats().completion_tokens == 10


def test_a_load_waits_for_the_batch_and_holds_up_what_came_after_it(core, loop, callers):
    first = sampling(callers, loop, 1)
    core.stepping.acquire()
    loading = callers.submit(loop.load, SECOND, "bb")
    while loop._arriving.empty():
        threading.Event().wait(0.001)
    second = sampling(callers, loop, 2, expect=SECOND)
    assert not loading.done()
    core.go.release(4)
    assert first.result()[0].text == "aa"
    assert loading.result() == TIMES
    assert second.result()[0].text == "bb"
    assert core.batch_sizes == [1, 1, 1, 1]


def test_a_call_that_expects_another_policy_is_refused_unsampled(core, loop):
    with pytest.raises(PolicyMismatch, match="expects"):
        loop.sample(ask(1), TWO_TOKENS, SECOND)
    assert core.requests == {}


def test_weights_of_another_digest_are_refused_and_then_nothing_is_held(loop):
    with pytest.raises(PolicyMismatch):
        loop.load(SECOND, "cc")
    assert loop.held() is None
    with pytest.raises(PolicyMismatch):
        loop.sample(ask(1), TWO_TOKENS, FIRST)
    assert loop.load(SECOND, "bb") == TIMES


def test_a_directory_without_weights_leaves_the_policy_that_is_held(loop):
    with pytest.raises(WeightsMissing):
        loop.load(SECOND, "absent")
    assert loop.held() == FIRST


def test_the_same_weights_under_a_later_version_are_not_read_again(core, loop):
    later = PolicyRef(policy_version=4, weights_sha256="aa")
    assert loop.load(later, "anywhere") is None
    assert loop.held() == later
    assert core.loaded == ["aa"]


@pytest.mark.parametrize("seed", [13, 14])
def test_a_refused_request_fails_its_call_and_no_other(core, loop, callers, seed):
    other = sampling(callers, loop, 1)
    core.stepping.acquire()
    refused = sampling(callers, loop, 2, seed)
    while loop._arriving.empty():
        threading.Event().wait(0.001)
    core.go.release(2)
    with pytest.raises(ValueError, match=f"seed {seed}"):
        refused.result()
    assert other.result()[0].request_id == "r1"
    assert core.batch == {}


def test_a_completion_that_was_cut_off_fails_its_call_and_no_other(core, loop, callers):
    core.go.release(4)
    with pytest.raises(CompletionFailed, match="request r15: it ended with finish_reason abort"):
        loop.sample(ask(15, 2), TWO_TOKENS, FIRST)
    assert loop.sample(ask(3), TWO_TOKENS, FIRST)[0].request_id == "r3"


def test_a_failing_step_fails_every_call_and_breaks_the_engine(core, loop, callers):
    first = sampling(callers, loop, 1)
    core.stepping.acquire()
    second = sampling(callers, loop, 2)
    core.fail_step = True
    core.go.release(2)
    for call in (first, second):
        with pytest.raises(EngineBroken, match="out of memory"):
            call.result()
    with pytest.raises(EngineBroken):
        loop.sample(ask(3), TWO_TOKENS, FIRST)
    with pytest.raises(EngineBroken):
        loop.held()


def test_a_load_that_fails_half_way_breaks_the_engine(loop):
    with pytest.raises(EngineBroken, match="half a tensor"):
        loop.load(SECOND, "broken")
    with pytest.raises(EngineBroken):
        loop.sample(ask(1), TWO_TOKENS, FIRST)


def test_an_engine_that_cannot_be_built_says_why():
    def build():
        raise EngineNotStarted("no such model", "look at engines.sampler.options")

    loop = EngineLoop(build)
    with pytest.raises(EngineNotStarted, match="no such model"):
        loop.wait_until_started()
    with pytest.raises(EngineBroken, match="no such model"):
        loop.sample(ask(1), TWO_TOKENS, FIRST)


def test_nothing_asked_is_nothing_sampled(core, loop):
    assert loop.sample([], TWO_TOKENS, FIRST) == []
    assert core.batch_sizes == []
