"""One update of the trainer on the CPU under several options, in turns: seconds, CPU-seconds, peak memory, digest.

    python benchmarks/update.py MODEL_DIRECTORY [--turns 2] [--arm products=torch --arm products=onednn]

Rows are those of the steps of against_trl.py: 8 groups of 4, 64 prompt and 128 completion tokens each, random ones. An
arm is a process; its options are those of engines.trainer, and `tokens` (a micro-batch, 1024 by default). The first
update of an arm, in which the optimizer's state is made, is not counted.
"""

import argparse
import random
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import yaml
from against_trl import in_turns, say, start
from trl_arms import GROUPS, RESPONSE, RESPONSES, OwnUpdates, reply, wait_for_line

ARMS = ("packed_tokens=0,tokens=2048,products=torch", "products=torch", "products=onednn")


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion that nobody sampled."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def completions() -> list[Drawn]:
    """Return completions of RESPONSE tokens, from a seed."""
    draw = random.Random(1)
    return [
        Drawn(tuple(draw.randrange(1000, 40000) for _ in range(RESPONSE)), (-1.0,) * RESPONSE) for _ in range(RESPONSES)
    ]


def run_arm(model: str, options: dict[str, Any]) -> None:
    """Take an update a line."""
    tokens = options.pop("tokens", 1024)
    updates, made = OwnUpdates(model, **{"packed_tokens": 1024, **options}), completions()
    while True:
        wait_for_line()
        began, cpu = time.perf_counter(), time.process_time()
        updates.update(made, tokens, logprob_gap_max=None)
        reply(
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            weights=updates.policy.weights_sha256[:12],
        )


def options_of(arm: str) -> dict[str, Any]:
    """Return the options of `name=value,name=value`."""
    pairs = (one.partition("=") for one in arm.split(",") if one)
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def main() -> None:
    """Measure the arms in turns, print each update, then medians and ratios to the first arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model directory in Hugging Face format")
    parser.add_argument("--arm", action="append", help="options of the trainer, as name=value,name=value")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        run_arm(arguments.model, options_of(arguments.only))
        return
    arms = arguments.arm or list(ARMS)
    rows = in_turns({arm: start("update.py", arguments.model, "--only", arm) for arm in arms}, arguments.turns)
    for key in ("seconds", "cpu_seconds", "peak_gib"):
        medians = {arm: statistics.median(row[key] for row in found) for arm, found in rows.items()}
        say(median=key, groups=GROUPS, **medians, ratio=[found / medians[arms[0]] for found in medians.values()])


if __name__ == "__main__":
    main()
