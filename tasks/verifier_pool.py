"""Judging answers in worker processes, each of which ends when one answer takes too much CPU time.

Each thread of the pool owns one worker process for as long as the pool lives; the kernel's death signal goes by the
thread that started a process, so a worker ends with its thread. A case's deadline is CPU time of its worker, so that a
verdict does not depend on what else the machine does. One bad answer costs its own timeout and the start of a new
worker, and no other case anything. A worker that makes no progress without being short of CPU (stopped, or asleep in
the middle of a case) is killed and its case is judged by another.
"""

import atexit
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cgrpo_core.answer_text import scored_text
from cgrpo_core.errors import UserError
from cgrpo_core.params import VerifyParams
from cgrpo_core.records import Problem, Verdict, VerdictStatus
from cgrpo_core.rewards import reward_of
from cgrpo_core.verifier_table import VERIFIER_VERSION, VerifierName, verifier_for, written_truth

START_TIMEOUT_S = 120.0
ATTEMPTS = 2  # a worker may die of something else than its case; one that dies twice of the same case dies of it
POLL_S = 0.25
STALL_S = 10.0  # without any progress while not waiting for a processor
BACKSTOP_S = 3600.0  # of wall-clock time, whatever the state of the worker
WAITING_FOR_CPU = "RD"  # running or in line for it, and reading from disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A text to be judged, and what it is judged by. `subject_id` is the response_id, refinement_id or the like."""

    subject_id: str
    text: str
    ground_truth: str
    question: str | None = None  # an answer that only repeats it is none
    source: str | None = None  # the data source, which may name the verifier


def case_of(subject_id: str, text: str, problem: Problem) -> Case:
    """Return the case of a completion's text against its problem."""
    return Case(
        subject_id=subject_id,
        text=text,
        ground_truth=problem.ground_truth,
        question=problem.question,
        source=problem.source,
    )


class VerifierUnavailable(UserError):
    """A verifier worker does not start, so nothing can be judged."""


class WorkerDied(RuntimeError):
    """The worker process ended in the middle of a case."""


class DeadlineExceeded(RuntimeError):
    """The worker process had used up its CPU time, or did not start in time."""


class Progress:
    """Whether a process gets on, by its state and the CPU time in /proc; where there is no /proc it is taken to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.used = -1
        self.since = time.monotonic()

    def stalled(self) -> bool:
        """Return whether the process has used no CPU time for STALL_S seconds without being in line for a processor."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        used = int(fields[11]) + int(fields[12])
        if used != self.used or fields[0] in WAITING_FOR_CPU:
            self.used, self.since = used, time.monotonic()
        return time.monotonic() - self.since > STALL_S


class VerifierWorker:
    """One worker process, driven by the thread that made it."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.verifier_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A fixed hash seed: the order in which sympy tries things must not differ between workers.
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.buffer = b""
        try:
            self.read_line(START_TIMEOUT_S)
        except (WorkerDied, DeadlineExceeded) as fault:
            self.stop()
            raise VerifierUnavailable(
                f"a verifier worker did not start: {self.last_error() or type(fault).__name__}",
                "`python -m tasks.verifier_worker $$` in the same environment shows why",
            ) from None

    def ask(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one case; raise DeadlineExceeded or WorkerDied, after which the worker is of no use."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(case).encode("ascii") + b"\n")
            self.process.stdin.flush()
        except OSError as fault:
            raise WorkerDied(str(fault)) from None
        reply: dict[str, Any] = json.loads(self.read_line(BACKSTOP_S))
        return reply

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line from the worker; raise when it ends, stalls, or has none after `timeout_s` seconds."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        progress = Progress(self.process.pid)
        while b"\n" not in self.buffer:
            readable, _, _ = select.select([descriptor], [], [], POLL_S)
            if readable:
                self.buffer += self.read_piece(descriptor)
            elif time.monotonic() > deadline:
                raise DeadlineExceeded
            elif progress.stalled():
                raise WorkerDied("no progress")
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def read_piece(self, descriptor: int) -> bytes:
        """Return what the worker wrote; raise DeadlineExceeded or WorkerDied when it has ended."""
        piece = os.read(descriptor, 65536)
        if piece:
            return piece
        code = self.process.wait()
        if code == -signal.SIGPROF:
            raise DeadlineExceeded
        raise WorkerDied(f"exit code {code}")

    def last_error(self) -> str:
        """Return the last line that the ended worker wrote to standard error."""
        assert self.process.stderr is not None
        lines = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""

    def stop(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait()


class VerifierPool:
    """`workers` threads with a worker process each, started when first needed and replaced when lost."""

    def __init__(self, workers: int) -> None:
        self.executor = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="verifier")
        self.own = threading.local()
        self.workers: set[VerifierWorker] = set()
        atexit.register(self.close)

    def submit(self, case: Case, params: VerifyParams) -> "Future[Verdict]":
        """Judge one case as soon as a worker is free."""
        return self.executor.submit(self.judge_case, case, params)

    def judge_case(self, case: Case, params: VerifyParams) -> Verdict:
        """Return the verdict on one case from this thread's worker."""
        verifier = verifier_for(params.verifier, case.source)
        message = {
            "text": scored_text(case.text, params.max_characters),
            "ground_truth": written_truth(case.ground_truth, case.source),
            "question": case.question,
            "verifier": verifier,
            "max_characters": params.max_characters,
            "timeout_s": params.timeout_s,
        }
        for _ in range(ATTEMPTS):
            worker = self.worker()
            try:
                reply = worker.ask(message)
            except DeadlineExceeded:
                self.drop(worker)
                return fault_verdict(case.subject_id, verifier, "timeout", params.timeout_s)
            except WorkerDied:
                self.drop(worker)
                continue
            return judged_verdict(case.subject_id, verifier, reply)
        return fault_verdict(case.subject_id, verifier, "error", 0.0)

    def worker(self) -> VerifierWorker:
        """Return this thread's worker, a new one if there is none or it has ended while idle."""
        worker: VerifierWorker | None = getattr(self.own, "worker", None)
        if worker is not None and worker.process.poll() is None:
            return worker
        if worker is not None:
            self.drop(worker)
        worker = VerifierWorker()
        self.own.worker = worker
        self.workers.add(worker)
        return worker

    def drop(self, worker: VerifierWorker) -> None:
        """End this thread's worker."""
        worker.stop()
        self.workers.discard(worker)
        self.own.worker = None

    def close(self) -> None:
        """End the threads, whose current cases finish first, and all worker processes."""
        self.executor.shutdown(wait=True, cancel_futures=True)
        for worker in list(self.workers):
            worker.stop()
        self.workers.clear()


def verify_all(cases: Sequence[Case], params: VerifyParams) -> list[Verdict]:
    """Return the verdict on each case, in the order of the cases.

    Reward: 1.0 correct, 0.0 incorrect or unparsable, None for timeout and error. Cases that differ in their subject
    alone are judged once; all but the first then took 0 ms. The pool of `params.workers` processes is kept for the life
    of this process. Raises VerifierUnavailable when a worker cannot be started.
    """
    pool, asked = shared_pool(params.workers), dict[Case, Future[Verdict]]()
    alike = [replace(case, subject_id="") for case in cases]
    for case, same in zip(cases, alike, strict=True):
        if same not in asked:
            asked[same] = pool.submit(case, params)
    try:
        return [_verdict_of(case, asked[same].result()) for case, same in zip(cases, alike, strict=True)]
    finally:
        for verdict in asked.values():
            verdict.cancel()  # no effect on one that is done; after a fault or Ctrl-C the rest is not begun


def _verdict_of(case: Case, verdict: Verdict) -> Verdict:
    own = verdict.subject_id == case.subject_id
    return verdict if own else replace(verdict, subject_id=case.subject_id, elapsed_ms=0.0)


@cache
def shared_pool(workers: int) -> VerifierPool:
    """Return this process's pool of that size."""
    return VerifierPool(workers)


@cache
def verifier_name(verifier: VerifierName) -> str:
    """Return what goes into `Verdict.verifier`: the verifier and its version, and math-verify's."""
    name = f"{verifier}-{VERIFIER_VERSION}"
    asked = verifier in ("math_verify", "theoremqa")
    return f"{name} (math-verify {importlib.metadata.version('math-verify')})" if asked else name


def judged_verdict(subject_id: str, verifier: VerifierName, reply: dict[str, Any]) -> Verdict:
    """Return the verdict that a worker's reply means."""
    return Verdict(
        subject_id=subject_id,
        answer=reply["answer"],
        correct=reply["correct"],
        status=reply["status"],
        reward=reward_of(reply["correct"], reply["status"]),
        verifier=verifier_name(verifier),
        elapsed_ms=reply["elapsed_ms"],
    )


def fault_verdict(subject_id: str, verifier: VerifierName, status: VerdictStatus, seconds: float) -> Verdict:
    """Return the verdict `timeout` or `error` of a case that no worker judged."""
    return Verdict(
        subject_id=subject_id,
        answer=None,
        correct=False,
        status=status,
        reward=None,
        verifier=verifier_name(verifier),
        elapsed_ms=seconds * 1e3,
    )
