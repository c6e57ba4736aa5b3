"""The loop beside TRL's GRPOTrainer on the CPU: the same model, prompts, lengths and optimizer.

    python benchmarks/against_trl.py parity MODEL_DIRECTORY
    python benchmarks/against_trl.py steps MODEL_DIRECTORY [--turns 4]
    python benchmarks/against_trl.py memory [--layers 0] [--limit-gib 12]

TRL comes with `pip install "cgrpo[benchmark]"`. parity: identical responses and advantages through both losses; loss
and gradients are compared. steps: 8 prompts x 4 responses, 64 + 128 tokens (every response has all 128), in turns
(ABBA) by two processes that are both alive; generate, update and, for us, the way of the weights to the sampler apart;
CPU-seconds are the process's own. memory: the peak of loss and gradients of B x T tokens over what was there before, of
a head on an embedding (--layers 1: with a narrow layer between), in a process of its own under a limit on its data.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trl_arms import PROMPT, RESPONSE, RESPONSES

SIZES = [(2, 512), (2, 2048), (4, 4096)]
VOCABULARIES = [49_152, 151_936]
ARMS = ("cgrpo", "trl")


def say(**row: Any) -> None:
    """Print one measurement as a line of JSON."""
    print(json.dumps({name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in row.items()}), flush=True)


def start(program: str, *words: str) -> subprocess.Popen[str]:
    """Start a program beside this one as a process that obeys lines on its standard input."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(program)), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)


def ask(arm: subprocess.Popen[str], line: str) -> dict[str, Any]:
    """Send a line and return the next measurement that the arm prints. Raises RuntimeError if it ends instead."""
    assert arm.stdin is not None
    assert arm.stdout is not None
    arm.stdin.write(line + "\n")
    arm.stdin.flush()
    for reply in arm.stdout:
        if reply.startswith("{"):
            answer: dict[str, Any] = json.loads(reply)
            return answer
    raise RuntimeError(f"an arm ended with exit code {arm.wait()}")


def in_turns(arms: dict[str, subprocess.Popen[str]], turns: int) -> dict[str, list[dict[str, Any]]]:
    """Ask each arm once to warm up, then all in turns (ABBA); print and return what they measured, and end them."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    try:
        for name, arm in arms.items():
            say(arm=name, warm_up=ask(arm, "step"))
        for turn in range(turns):
            for name in list(arms) if turn % 2 == 0 else list(arms)[::-1]:
                rows[name].append(ask(arms[name], "step"))
                say(arm=name, turn=turn, **rows[name][-1])
    finally:
        for arm in arms.values():
            arm.kill()
            arm.wait()
    return rows


def measure_steps(model: str, turns: int) -> None:
    """Print each step, then medians and ratios."""
    rows = in_turns({name: start("trl_arms.py", name, model) for name in ARMS}, turns)
    median = {
        name: {key: statistics.median(row[key] for row in done) for key in done[0]} for name, done in rows.items()
    }
    for name in ARMS:
        say(arm=name, turns=turns, prompts=PROMPT, response=RESPONSE, rows=RESPONSES, **median[name])
    for key in ("seconds", "cpu_seconds", "generate_seconds", "update_seconds"):
        say(ratio=key, cgrpo_over_trl=median["cgrpo"][key] / median["trl"][key])


def measure_memory(limit_gib: float, layers: int) -> None:
    """Print the peak of each size and vocabulary for both, or that it does not fit."""
    for vocabulary in VOCABULARIES:
        for rows, length in SIZES:
            for name in ARMS:
                words = [name, str(rows), str(length), str(vocabulary), str(layers)]
                limit = int(limit_gib * 2**30)
                arm = subprocess.run(
                    [sys.executable, "-W", "ignore", str(Path(__file__).with_name("trl_memory.py")), *words],
                    env={**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                    preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
                )
                replies = [json.loads(line) for line in arm.stdout.splitlines() if line.startswith("{")]
                said = replies[-1] if replies else {"does_not_fit": arm.stderr.strip().splitlines()[-1:]}
                say(memory=name, rows=rows, length=length, V=vocabulary, layers=layers, limit_gib=limit_gib, **said)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "steps", "memory"])
    parser.add_argument("model", nargs="?", help="a model directory in Hugging Face format")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--limit-gib", type=float, default=12.0)
    parser.add_argument("--layers", type=int, default=0, help="of the model below the head whose memory is measured")
    arguments = parser.parse_args()
    if arguments.what != "memory" and not arguments.model:
        parser.error("name a model directory; `cgrpo model critique-grpo` prints one")
    began = time.time()
    if arguments.what == "parity":
        say(**ask(start("trl_parity.py", arguments.model), ""))
    elif arguments.what == "steps":
        measure_steps(arguments.model, arguments.turns)
    else:
        measure_memory(arguments.limit_gib, arguments.layers)
    say(took_seconds=time.time() - began)


if __name__ == "__main__":
    main()
