"""A process that judges answers: `python -m tasks.verifier_worker PARENT_PID`, JSON lines in, JSON lines out.

First line out: {"ready": true}. Then for each line in {"text", "ground_truth", "question", "verifier",
"max_characters", "timeout_s"} one line out {"answer", "correct", "status", "elapsed_ms"}. One thread, no pickle, a
bounded address space. The deadline of a case is CPU time: the kernel ends this process by SIGPROF when it has used
`timeout_s` seconds on one case, inside a long multiplication too, however busy the machine is.
It ends with its parent: by the kernel's death signal and by the end of its input.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
ADDRESS_SPACE_BYTES = 2 << 30  # 10^(10^10) must end in a MemoryError here, not in the kernel's choice of a victim


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; exit if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(0)


def private_output() -> TextIO:
    """Return the real standard output and point descriptor 1 at standard error, where stray prints do no harm."""
    output = os.fdopen(os.dup(1), "w", encoding="ascii", buffering=1)
    os.dup2(2, 1)
    return output


def silence_errors() -> None:
    """Point descriptors 1 and 2 at the null device: ANTLR writes a line there for each token that it cannot read."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def answer_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to one case, or end with SIGPROF when it takes more CPU time than the case may."""
    from cgrpo_core.verifiers import judge

    start = time.thread_time()  # the process's own clock goes by ticks while the timer below is set
    signal.setitimer(signal.ITIMER_PROF, case["timeout_s"])
    try:
        judgement = judge(
            case["text"], case["ground_truth"], case["max_characters"], case["question"], case["verifier"]
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
    return {
        "answer": judgement.answer,
        "correct": judgement.correct,
        "status": judgement.status,
        "elapsed_ms": (time.thread_time() - start) * 1e3,
    }


def main(arguments: list[str]) -> None:
    """Serve cases until the input ends."""
    die_with_parent(int(arguments[0]))
    output = private_output()
    import cgrpo_core.verifiers  # noqa: F401 - the slow import comes before `ready`, outside any case's deadline

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    output.write('{"ready": true}\n')
    silence_errors()
    for line in sys.stdin.buffer:
        output.write(json.dumps(answer_case(json.loads(line))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
