"""The head on the CPU, float32: peak memory against its bound, seconds against the plain path, error against float64.

    python benchmarks/head.py [--chunk 256] [--tokens 1024 4096] [--turns 3]

The peak is that of the process over inputs and hidden states' gradient, so with the head's gradient (dW); the bound is
1.1 dW + 3 chunk V 4 bytes. Each way and size is a process of its own; entropy is computed, and its gradient is not.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from statistics import median

import torch
from gpu import chunked, error_to_float64, head_inputs, plain, say
from trl_memory import peak, reset_peak

WIDTH, VOCABULARIES, THREADS = 576, (49_152, 151_936), 2
WAYS = ("plain", "torch", "onednn")


def run_way(way: str, tokens: int, vocabulary: int, chunk: int, turns: int) -> None:
    """Print one way's figures."""
    torch.set_num_threads(THREADS)
    run = plain if way == "plain" else chunked(promised=True, entropy=True, chunk=chunk, library=way)
    inputs = head_inputs(tokens, WIDTH, vocabulary, torch.device("cpu"))
    inputs[0].grad = torch.zeros_like(inputs[0])
    error = error_to_float64(run, inputs)  # first: what libraries keep for good is not of the head
    gc.collect()
    before, seconds, cpu = reset_peak(), [], []
    for _ in range(turns):
        began, used = time.perf_counter(), time.process_time()
        run(*inputs)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        inputs[1].grad = None
    gib = (peak() - before) / 2**20
    bound = (1.1 * vocabulary * WIDTH + 3 * chunk * vocabulary) * 4 / 2**30
    figures = {"ms": 1e3 * median(seconds), "cpu_ms": 1e3 * median(cpu), "peak_gib": gib, "bound_gib": bound}
    say(way=way, tokens=tokens, V=vocabulary, **figures, error=error)


def main() -> None:
    """Run every way at every size, one process after the other, and print ratios to the plain path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        way, tokens, vocabulary = arguments.only
        run_way(way, int(tokens), int(vocabulary), arguments.chunk, arguments.turns)
        return
    for vocabulary in VOCABULARIES:
        for tokens in arguments.tokens:
            rows = {}
            for way in WAYS:
                command = [sys.executable, __file__, "--chunk", str(arguments.chunk), "--turns", str(arguments.turns)]
                command += ["--only", way, str(tokens), str(vocabulary)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows[way] = json.loads(out.splitlines()[-1])
                print(json.dumps(rows[way]), flush=True)
            ratios = {way: rows[way]["cpu_ms"] / rows["plain"]["cpu_ms"] for way in WAYS}
            say(tokens=tokens, V=vocabulary, cpu_ratio=ratios)


if __name__ == "__main__":
    main()
