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
        [case("before", "4", "4"), case("hung", TOWER, "4"), case("after", "5", "5")],
        VerifyParams(timeout_s=1.0, workers=1),
    )
    assert outcome(hung) == ("timeout", False, None)
    assert hung.elapsed_ms == 1000
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

    def ask_and_die(worker: VerifierWorker, message: dict) -> dict:
        if deaths[0]:
            deaths[0] -= 1
            worker.process.send_signal(signal.SIGKILL)
        return ask(worker, message)

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


@pytest.mark.parametrize("stopped_when", ["idle", "in a case"])
def test_a_stopped_worker_is_noticed_and_killed_and_its_case_judged_by_another(
    pool: VerifierPool, monkeypatch: pytest.MonkeyPatch, stopped_when: str
) -> None:
    assert pool.submit(case("a", "4", "4"), PATIENT).result().correct
    (worker,) = pool.workers
    monkeypatch.setattr(verifier_pool, "STALL_S", 1.0)
    if stopped_when == "idle":
        worker.process.send_signal(signal.SIGSTOP)
        verdict = pool.submit(case("b", "5", "5"), PATIENT).result()
        assert outcome(verdict) == ("ok", True, 1.0)
    else:
        future = pool.submit(case("b", TOWER, "4"), VerifyParams(timeout_s=2.0))
        time.sleep(0.5)
        worker.process.send_signal(signal.SIGSTOP)
        assert outcome(future.result()) == ("timeout", False, None)  # of the worker that took over
    assert worker not in pool.workers
    assert not alive(worker.process.pid)


# What models write, with an answer that runs for ever among them.
WRITTEN = [
    *((f"It is {n}.", str(n)) for n in range(6)),
    (r"\boxed{\frac{2}{4}}", "0.5"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{1 < x \leq 3}", "(1,3]"),
    (r"\boxed{3, 2, 1}", "1,2,3"),
    (r"\boxed{\sin^2 t + \cos^2 t}", "1"),
    (TOWER, "4"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{x^2 - 1}", "(x-1)(x+2)"),
    ("nothing", "4"),
]


def test_verdicts_do_not_depend_on_the_load_of_the_machine() -> None:
    cases = [case(str(number), text, truth) for number, (text, truth) in enumerate(WRITTEN)]
    params = VerifyParams(timeout_s=1.0)
    alone, crowd = VerifierPool(1), VerifierPool(8)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        crowded = [crowd.submit(each, params) for each in cases]
        expected = [outcome(verdict.result()) for verdict in crowded]
        for process in busy:
            process.kill()
        found = [outcome(alone.submit(each, params).result()) for each in cases]
    finally:
        for process in busy:
            process.kill()
            process.wait()
        alone.close()
        crowd.close()
    assert found == expected
    assert [status for status, _, _ in found].count("timeout") == 1


def test_the_data_source_chooses_the_verifier_unless_one_is_set() -> None:
    choice = Case(subject_id="a", text="The answer is (B).", ground_truth="B", source="gpqa_diamond")
    solved = Case(subject_id="b", text="#### 72 is 72", ground_truth="long working #### 72", source="gsm8k")
    by_source = verify_all([choice, solved], PATIENT)
    assert [outcome(verdict) for verdict in by_source] == [("ok", True, 1.0)] * 2
    assert [verdict.verifier.partition("-")[0] for verdict in by_source] == ["multiple_choice", "math_verify"]
    (verdict,) = verify_all([choice], VerifyParams(verifier="boolean"))
    assert verdict.status == "error"
