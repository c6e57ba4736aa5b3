"""A process that hangs is found by its silence, or by a counter that stands still, and is killed."""

import os
import signal
import threading
import time

import pytest

from cgrpo_core.errors import UserError
from tasks.engines.actors import INFO, NAMESPACE, call_all, find_actor, stop_actors
from tasks.engines.deadlines import Pulse, check_deadline, process_of
from tasks.engines.faults import EngineHung, EngineLost

pytestmark = pytest.mark.e2e


class Worker:
    """Works in one thread; answers how far it is in another."""

    def __init__(self) -> None:
        self.done = 0

    def work(self, seconds: float, counting: bool) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.done += counting
            time.sleep(0.05)
        return self.done

    def how_far(self) -> int:
        return self.done

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def worker(local_ray):
    import sys

    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    made = (
        local_ray.remote(concurrency_groups={INFO: 2})(Worker)
        .options(name="worker", namespace=NAMESPACE, num_cpus=0, get_if_exists=True, max_restarts=0)
        .remote()
    )
    local_ray.get(made.pid.remote())
    yield made
    stop_actors(["worker"])


def pulse(worker, deadline_s: float, counting: bool = False) -> Pulse:
    def ask(actor):
        return actor.how_far.options(concurrency_group=INFO).remote()

    return Pulse({"worker": worker}, ask, deadline_s, (lambda done: done) if counting else None)


def test_a_stopped_process_is_killed_and_its_call_raises(worker, local_ray):
    pid = local_ray.get(worker.pid.remote())
    assert process_of(worker) == pid
    threading.Timer(0.5, os.kill, (pid, signal.SIGSTOP)).start()
    with pytest.raises(EngineHung, match=f"worker made no progress for 2 s: its process {pid} was killed"):
        call_all({"worker": worker.work.remote(60, True)}, pulse(worker, 2.0))
    with pytest.raises(EngineLost):
        call_all({"worker": worker.pid.remote()}, pulse(worker, 2.0))


def test_a_call_of_many_deadlines_is_waited_for_while_its_process_answers(worker):
    assert call_all({"worker": worker.work.remote(3, False)}, pulse(worker, 0.8)) == [0]


def test_a_process_that_answers_but_gets_no_further_hangs_too(worker):
    with pytest.raises(EngineHung):
        call_all({"worker": worker.work.remote(60, False)}, pulse(worker, 1.0, counting=True))


def test_a_process_that_gets_further_does_not(worker):
    assert call_all({"worker": worker.work.remote(3, True)}, pulse(worker, 1.0, counting=True))[0] > 10


def test_a_stopped_actor_is_ended_all_the_same(worker, local_ray, monkeypatch):
    monkeypatch.setattr("tasks.engines.actors.POLITE_SECONDS", 1.0)
    os.kill(local_ray.get(worker.pid.remote()), signal.SIGSTOP)
    stop_actors(["worker"])
    assert find_actor("worker") is None


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("inf"), None])
def test_a_deadline_that_is_no_time_is_refused(value):
    with pytest.raises(UserError, match=r"engines\.x\.deadline_s"):
        check_deadline("engines.x", value)
