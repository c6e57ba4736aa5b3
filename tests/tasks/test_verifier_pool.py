"""One bad answer costs its own timeout and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from cgrpo_core.params import VerifyParams
from cgrpo_core.records import Verdict
from tasks import verifier_pool
from tasks.verifier_pool import Case, VerifierPool, VerifierUnavailable, VerifierWorker, verify_all

TOWER = r"It is \boxed{10^{10^{10^{10}}}}."  # sympy works on it without end
PATIENT = VerifyParams(timeout_s=60.0, workers=1)


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    pool = VerifierPool(1)
    yield pool
    pool.close()


def case(subject_id: str, text: str, ground_truth: str) -> Case:
    return Case(subject_id=subject_id, text=text, ground_truth=ground_truth)


def outcome(verdict: Verdict) -> tuple[str, bool, float | None]:
    return verdict.status, verdict.correct, verdict.reward


def test_each_kind_of_verdict_has_its_reward() -> None:
    cases = [("a", r"\boxed{4}", "4"), ("b", "It is 5.", "4"), ("c", "no idea", "4"), ("d", "4", " ")]
    verdicts = verify_all([case(*fields) for fields in cases], PATIENT)
    assert [verdict.subject_id for verdict in verdicts] == ["a", "b", "c", "d"]
    assert [outcome(verdict) for verdict in verdicts] == [
        ("ok", True, 1.0),
        ("ok", False, 0.0),
        ("unparsable", False, 0.0),
        ("error", False, None),
    ]
    assert verdicts[0].answer == "4"
    assert verdicts[0].verifier.startswith("math_verify-")


def test_an_answer_that_hangs_the_verifier_is_a_timeout_and_the_next_is_judged() -> None:
    before, hung, after = verify_all(
        [case("before", "4", "4"), case("hung", TOWER, r"10^{10}"), case("after", "5", "5")],
        VerifyParams(timeout_s=3.0, workers=1),
    )
    assert outcome(hung) == ("timeout", False, None)
    assert hung.elapsed_ms >= 3000
    assert outcome(before) == outcome(after) == ("ok", True, 1.0)


def test_hostile_text_reaches_the_worker_and_comes_back() -> None:
    hostile = ["\x00" * 50 + " 4", "\ud800\udfff 4", "x" * 1_000_000 + " 4", "\n{}\n4", '"}\n{"text": 4\u2028 4']
    verdicts = verify_all([case(str(number), text, "4") for number, text in enumerate(hostile)], PATIENT)
    assert [outcome(verdict) for verdict in verdicts] == [("ok", True, 1.0)] * len(hostile)


def test_an_idle_worker_that_was_killed_is_replaced(pool: VerifierPool) -> None:
    assert pool.submit(case("a", "4", "4"), PATIENT).result().correct
    (worker,) = pool.workers
    worker.process.kill()
    worker.process.wait()
    assert pool.submit(case("b", "4", "4"), PATIENT).result().correct
    assert worker not in pool.workers


def test_a_worker_killed_once_in_a_case_is_replaced_and_twice_is_an_error(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = [1]
    ask = VerifierWorker.ask

    def ask_and_die(worker: VerifierWorker, message: dict, timeout_s: float) -> dict:
        if deaths[0]:
            deaths[0] -= 1
            worker.process.send_signal(signal.SIGKILL)
        return ask(worker, message, timeout_s)

    monkeypatch.setattr(VerifierWorker, "ask", ask_and_die)
    assert outcome(pool.submit(case("a", "4", "4"), PATIENT).result()) == ("ok", True, 1.0)
    deaths[0] = 2
    assert outcome(pool.submit(case("b", "4", "4"), PATIENT).result()) == ("error", False, None)
    assert outcome(pool.submit(case("c", "4", "4"), PATIENT).result()) == ("ok", True, 1.0)


def test_two_threads_share_a_pool_and_keep_their_own_cases() -> None:
    found: dict[int, list[Verdict]] = {}

    def judge(thread: int) -> None:
        cases = [case(f"{thread}-{n}", f"It is {n}.", str(n if n % 2 else n + 1)) for n in range(20)]
        found[thread] = verify_all(cases, VerifyParams(timeout_s=60.0, workers=2))

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert [row.subject_id for row in found[number]] == [f"{number}-{n}" for n in range(20)]
        assert [row.correct for row in found[number]] == [bool(n % 2) for n in range(20)]


def test_workers_outlive_the_thread_that_asked_first() -> None:
    first = threading.Thread(target=verify_all, args=([case("a", "4", "4")], PATIENT))
    first.start()
    first.join()
    workers = set(verifier_pool.shared_pool(1).workers)
    assert verify_all([case("b", "4", "4")], PATIENT)[0].correct
    assert set(verifier_pool.shared_pool(1).workers) == workers


def test_a_worker_that_cannot_start_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_pool.sys, "executable", "/bin/false")
    with pytest.raises(VerifierUnavailable, match="did not start"):
        VerifierWorker()


def test_workers_end_with_a_parent_that_is_killed_while_one_hangs() -> None:
    script = (
        "import os, threading\n"
        "from cgrpo_core.params import VerifyParams\n"
        "from tasks import verifier_pool as pool\n"
        "four = pool.Case(subject_id='a', text='4', ground_truth='4')\n"
        "pool.verify_all([four], VerifyParams(workers=1))\n"
        f"tower = pool.Case(subject_id='b', text={TOWER!r}, ground_truth='4')\n"
        "threading.Thread(target=pool.verify_all, args=([tower], "
        "VerifyParams(workers=1, timeout_s=600.0)), daemon=True).start()\n"
        "(worker,) = pool.shared_pool(1).workers\n"
        "print(worker.process.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker_pid = int(parent.stdout.readline())
    assert alive(worker_pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while alive(worker_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker_pid)


def alive(pid: int) -> bool:
    """Return whether a process runs; an ended one that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
