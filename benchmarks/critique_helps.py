"""Does the critique help? The arms of an experiment, over seeds, at equal numbers of sampled tokens.

    python benchmarks/critique_helps.py DIRECTORY [--seeds 5] [--iterations 20] [--sweep] [--report-only] [--json]
                                        [--embedded] [--out docs/critique_helps.png]

Trains the small model if there is none in DIRECTORY (critique_model.py), picks the problems that it solves in none of
eight samples, and trains every arm on them with real runs, real engines and one store, all on one Ray cluster and one
Prefect server. Runs that are complete are reused, so it goes on where it stopped. What it prints comes from the store
by SQL (critique_report.py). --sweep tries learning rates on seeds of its own. --embedded: the same with the embedded
model on sums of two-digit numbers, three arms, which takes half a minute an iteration.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import critique_model
import critique_report
import psutil
from kill_lab import ROOT, Lab, name_of, open_lab, tree

from storage.catalog import query
from storage.errors import RunNotFound
from storage.runs import run_state

MARK = "arm: "
# Arm -> pipeline and preset. `grpo` has a loss of its own (std, means over length); `no_refinement` is paper_v6 without
# refinements, so that between it, the control and paper_v6 nothing differs but what joins a group that failed.
ARMS = {
    "grpo": ("grpo", "grpo"),
    "no_refinement": ("critique-grpo", "ablation_no_kl"),
    "control_resample": ("critique-grpo", "control_resample"),
    "paper_v6": ("critique-grpo", "paper_v6"),
}
RATES = {"small": dict.fromkeys(ARMS, "1e-4"), "embedded": dict.fromkeys(ARMS, "1e-5")}
SWEPT = ("3e-5", "1e-4")
FIRST_SEED, SWEEP_SEED, PROBE_SEED = 1, 101, 201
CANDIDATES, TRAINED, LIGHT, SHORT = 96, 64, 32, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is run, on what, and where its data lies."""

    kind: str  # small or embedded
    lab: Lab
    settings: dict[str, Any]

    @property
    def home(self) -> Path:
        """The store of all runs."""
        return self.lab.home

    def ask(self, sql: str, *runs: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query over these runs."""
        return query(self.home, sql, runs=list(runs)).rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run of the experiment."""

    name: str
    rate: str
    seed: int
    iterations: int

    @property
    def run(self) -> str:
        """The name of the run in the store."""
        return f"{self.name}-lr{self.rate}-seed{self.seed}-x{self.iterations}".replace(".", "-")


def sums(draw: random.Random, count: int, level: str) -> list[dict[str, str]]:
    """Return problems: `hard`, at least two of four columns carry into the next; `light`, at most one; or `short`."""
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < count:
        one = critique_model.draw_sum(draw, critique_model.SHORT if level == "short" else critique_model.LONG)
        if level == "short" or (one.carries >= 2) == (level == "hard"):
            rows[one.question] = {"problem": one.question, "answer": str(one.a + one.b), "level": level}
    return list(rows.values())


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write problems as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare_small(directory: Path) -> dict[str, Any]:
    """Train the model and write candidates and held-out problems, unless they are there; return the settings."""
    model = directory / "model"
    if not (model / "tokenizer.json").exists():
        critique_model.build(model, critique_model.STEPS)
    draw = random.Random("critique_helps")
    questions = sums(draw, CANDIDATES + TRAINED, "hard")
    write_rows(directory / "candidates.jsonl", questions[:CANDIDATES])
    held_out = questions[CANDIDATES:] + sums(draw, LIGHT, "light") + sums(draw, SHORT, "short")
    write_rows(directory / "held_out.jsonl", held_out)
    return {
        "inputs.base_model": f"{{kind: path, path: {model}}}",
        "inputs.eval_problems": f"{{kind: jsonl, path: {directory / 'held_out.jsonl'}}}",
        **{"rollout.template": "boxed", "rollout.max_prompt_tokens": 64, "rollout.max_response_tokens": 56},
        **{"refine.max_prompt_tokens": 256, "refine.max_response_tokens": 56},
        **{"evaluate.every": 4, "evaluate.max_prompt_tokens": 64, "evaluate.max_response_tokens": 56},
        **{"engines.sampler.options.kv_cache_gib": 0.5, "engines.trainer.options.num_threads": 1},
    }


def prepare_embedded(directory: Path) -> dict[str, Any]:
    """Write candidates and held-out problems: sums of two-digit numbers; return the settings."""
    draw = random.Random("critique_helps")
    pairs = draw.sample([(a, b) for a in range(10, 100) for b in range(a, 100)], 28)
    rows = [{"problem": f"What is {a} + {b}?", "answer": str(a + b), "level": "hard"} for a, b in pairs]
    write_rows(directory / "candidates.jsonl", rows[:12])
    write_rows(directory / "held_out.jsonl", rows[12:])
    return {
        "inputs.eval_problems": f"{{kind: jsonl, path: {directory / 'held_out.jsonl'}}}",
        **{"run.prompts_per_iteration": 4, "evaluate.every": 3},
    }


def common(directory: Path) -> dict[str, Any]:
    """Return what both experiments set besides their own."""
    return {
        "inputs.problems": f"{{kind: jsonl, path: {directory / 'problems.jsonl'}}}",
        **{"run.prompts_per_iteration": 8, "checkpoint.every": 1000, "checkpoint.keep": 1},
        # Iterations without a right response are what this is about, and no fault.
        **{"gates.constant_reward.then": "warn", "gates.equal_groups.then": "ignore"},
    }


def pick_problems(experiment: Experiment, directory: Path, train: "Trainer") -> None:
    """Sample each candidate eight times, in a run of its own, and keep those that were never right."""
    if (directory / "problems.jsonl").exists():
        return
    count = sum(1 for _ in (directory / "candidates.jsonl").open())
    probe = Arm(name="paper_v6", rate="0", seed=PROBE_SEED, iterations=1)
    train(
        probe,
        **{"inputs.problems": f"{{kind: jsonl, path: {directory / 'candidates.jsonl'}}}", "rollout.group_size": 8},
        **{"run.prompts_per_iteration": count, "optimizer.mini_batch_prompts": count},
    )
    rows = experiment.ask(critique_report.NEVER_RIGHT, probe.run)[:TRAINED]
    problems = [{"problem": question, "answer": answer, "level": "hard"} for question, answer in rows]
    write_rows(directory / "problems.jsonl", problems)


class Trainer:
    """Trains arm after arm in one child process, and notes what each took in `costs.jsonl`."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._log = experiment, (experiment.lab.directory / "arms.log").open("a")
        command = [sys.executable, str(ROOT / "tests" / "e2e" / "train_arms.py"), MARK]
        environment = {**experiment.lab.environment(), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
        self._child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __call__(self, arm: Arm, **more: Any) -> None:
        """Train an arm unless its run is complete. Raises RuntimeError if it fails."""
        state = self._state(arm)
        if state == "completed":
            return
        began, cpu = time.monotonic(), self._cpu_seconds()
        if state is None:
            fault = self._train(arm, more)
        else:
            fault = None if self._experiment.lab.start("resume", arm.run).wait() == 0 else "see flow.log"
        if fault:
            raise RuntimeError(f"{arm.run}: {fault}")
        seconds, cpu = time.monotonic() - began, self._cpu_seconds() - cpu
        cost = {"run": arm.run, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "whole": state is None}
        with (self._experiment.lab.directory / "costs.jsonl").open("a") as file:
            file.write(json.dumps(cost) + "\n")
        print(json.dumps(cost), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=60)
        self._log.close()

    def _state(self, arm: Arm) -> str | None:
        try:
            return run_state(self._experiment.home, arm.run).state
        except RunNotFound:
            return None

    def _train(self, arm: Arm, more: dict[str, Any]) -> str | None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        pipeline, preset = ARMS[arm.name]
        values = {"run.seed": arm.seed, "run.iterations": arm.iterations, "optimizer.lr": arm.rate}
        sets = [f"{key}={value}" for key, value in (self._experiment.settings | values | more).items()]
        order = {"pipeline": pipeline, "profile": "cpu", "presets": [preset], "sets": sets, "name": arm.run}
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        reply = next((line for line in self._child.stdout if line.startswith(MARK)), None)
        return "the child ended: see arms.log" if reply is None else json.loads(reply.removeprefix(MARK))

    def _cpu_seconds(self) -> float:
        """Return what the processes of the lab have taken up to now, with those that they have ended."""
        heads = (self._child, self._experiment.lab.head, self._experiment.lab.server)
        return sum(_cpu(one) for head in heads if head is not None for one in tree(head.pid) if name_of(one))


def _cpu(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


@contextmanager
def opened(kind: str, directory: Path) -> Iterator[tuple[Experiment, Trainer]]:
    """Yield the experiment with its services up and its problems picked."""
    settings = (prepare_small if kind == "small" else prepare_embedded)(directory)
    with open_lab(directory, 1) as lab:
        experiment = Experiment(kind=kind, lab=lab, settings=common(directory) | settings)
        trainer = Trainer(experiment)
        try:
            pick_problems(experiment, directory, trainer)
            yield experiment, trainer
        finally:
            trainer.close()


def arms(kind: str, seeds: int, iterations: int, sweep: bool) -> list[Arm]:
    """Return what is to be run, seed by seed, so that what is complete when it is stopped can be compared.

    Where learning rates are not swept, `grpo` comes last: the other arms answer the question.
    """
    names = list(ARMS) if kind == "small" else [name for name in ARMS if name != "no_refinement"]
    rates = [(name, rate) for name in names for rate in (SWEPT if sweep else (RATES[kind][name],))]
    first = SWEEP_SEED if sweep else FIRST_SEED
    planned = [
        Arm(name=name, rate=rate, seed=seed, iterations=iterations)
        for seed in range(first, first + seeds)
        for name, rate in rates
    ]
    return planned if sweep else sorted(planned, key=lambda arm: arm.name == "grpo")


def main() -> None:
    """Run what is not there yet, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--report-only", action="store_true", help="of what is complete; nothing is run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="where the picture goes")
    options = parser.parse_args()
    kind, directory = "embedded" if options.embedded else "small", options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    planned = arms(kind, options.seeds, options.iterations, options.sweep)
    if not options.report_only:
        with opened(kind, directory) as (_, train):
            for arm in planned:
                train(arm)
    home = Lab(directory, 1).home
    report = critique_report.make(home, [(arm.name, arm.rate, arm.seed, arm.run) for arm in planned])
    if options.out is not None:
        critique_report.plot(report, options.out)
    print(json.dumps(report, indent=1) if options.json else critique_report.table(report))


if __name__ == "__main__":
    main()
