"""Wall time of explore: with overlapping chunks, with the same chunks one stage at a time, and in one chunk.

    python benchmarks/overlap.py fit RUN [RUN ...]
    python benchmarks/overlap.py run --speed SPEED.json [--delay 5] [--prompts 16] [--chunks 4]
    python benchmarks/overlap.py real MODEL_DIRECTORY [--delay 1] [--chunks 4]

One stage at a time: chunk by chunk, each stage is submitted when the one before is published (in_turn.py).

`fit` prints the speed of the sampler of runs in CGRPO_HOME, from what their stages took. `run` trains the tiny model
through the real flow, stages, store and trainer, with a sampler that only takes time (simulated_engine.py), which the
stages find under the real name on a cluster of the benchmark's own. `real` does the same with vLLM and the model.
Critiques come from an OpenAI-compatible server that takes `delay` seconds for each, 16 at a time. The seeds do not
depend on the chunks, so all arms replay the same lengths, which are compared. The first iteration, in which workers
start, is not counted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
os.environ["CGRPO_BENCHMARK_KEY"] = "no-secret"

from critique_server import Say, critique_server  # noqa: E402 (a script of the tests)
from kill_lab import Lab, open_lab  # noqa: E402

from flows.home import data_home  # noqa: E402
from flows.leaves import make_plan  # noqa: E402
from storage.catalog import query  # noqa: E402
from storage.plans import Plan  # noqa: E402
from tasks.engines.actors import INFO, NAMESPACE  # noqa: E402
from tasks.engines.lease import engine_name  # noqa: E402
from tasks.engines.sampler_options import read_declaration  # noqa: E402
from tasks.engines.vllm_sampler import CALLS_AT_ONCE  # noqa: E402

EXPLORE = """
select iteration, epoch(max(ended_at)) - epoch(min(started_at)) as wall,
       sum(case when stage in ('rollout', 'refine') then (metrics->>'completion_tokens')::int end)::int as tokens
from stages where section = 'explore' and iteration > 1 group by all order by all
"""
# A stage takes as many steps as its longest completion has tokens; a prompt that a group shares is read once.
STEPS = """
with sampled as (
    select run, iteration, chunk, stage, len(token_ids) as tokens, group_id as prompt from responses
    union all select run, iteration, chunk, stage, len(token_ids), refinement_id from refinements
    union all select run, iteration, chunk, stage, tokens, problem_id from evaluations
), figures as (
    select run, iteration, chunk, stage, max(tokens) as steps, sum(tokens) as tokens,
           count(distinct prompt) / count(*) as apart
    from sampled where iteration is not null group by all
)
select steps, tokens, apart * (metrics->>'prompt_tokens')::int, (metrics->>'sampling_seconds')::double
from figures f join stages s on s.run = f.run and s.stage = f.stage
    and s.iteration = f.iteration and s.chunk is not distinct from f.chunk
"""
LENGTHS = "select list(len(token_ids) order by seed) from {table} where iteration > 1"
IN_TURN = ROOT / "benchmarks" / "in_turn.py"
PRESETS = ("paper_v6", "critique_cot")


def problems(directory: Path, count: int) -> Path:
    """Write a data set of sums, and return it."""
    path = directory / "problems.jsonl"
    rows = [{"problem": f"{place} and {place % 7}?", "answer": str(place % 4 + 1)} for place in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings_of(arguments: argparse.Namespace, directory: Path, model: Path, base_url: str, chunks: int) -> list[str]:
    """Return the settings of one arm; only the number of chunks differs."""
    source = f"{{kind: jsonl, path: {problems(directory, 4 * arguments.prompts)}}}"
    endpoint = f"{{model: scripted, base_url: '{base_url}', api_key_env: CGRPO_BENCHMARK_KEY, timeout_s: 120}}"
    long = arguments.way == "run"
    response, room = (512, 2048) if long else (40, 512)
    values: dict[str, Any] = {
        "inputs.base_model": f"{{kind: path, path: {model}}}",
        "inputs.problems": source,
        "inputs.eval_problems": f"{{kind: jsonl, path: {problems(directory, 4 * arguments.prompts)}}}",
        "engines.critiquer.options": endpoint,
        "run.iterations": arguments.iterations + 1,
        "run.prompts_per_iteration": arguments.prompts,
        "run.chunks": chunks,
        "rollout.max_response_tokens": response,
        "refine.gate": "all",
        "refine.max_prompt_tokens": room - response,
        "refine.max_response_tokens": response,
        "critique": "{attempts: 1, keep: any, max_prompt_tokens: 2048}",
        "limits": "{logprob_gap_max: null, degraded_critiques_max: 1.0}",
        "evaluate": "{every: 100, max_response_tokens: 16}",
        "checkpoint.every": 100,
        "optimizer": f"{{mini_batch_prompts: {arguments.prompts}}}",
        "engines.sampler.options.max_model_len": room,
        "engines.sampler.options.max_num_seqs": arguments.max_num_seqs,
    }
    return [f"{name}={value}" for name, value in values.items()]


def bind(lab: Lab, plan: Plan, model: Path, speed: dict[str, float]) -> None:
    """Start the simulated sampler on the lab's cluster, under the name by which the stages look for the real one."""
    import ray
    from simulated_engine import SimulatedActor, Speed

    declaration = next(s.engine for s in plan.stages if s.engine is not None and s.engine["kind"] == "vllm")
    options = read_declaration(declaration).options
    address = lab.environment()["RAY_ADDRESS"]
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    name = f"{engine_name(lab.home, declaration, model)}-0"
    actor = ray.remote(concurrency_groups={INFO: 4})(SimulatedActor).options(
        name=name, namespace=NAMESPACE, lifetime="detached", max_concurrency=CALLS_AT_ONCE, num_cpus=0
    )
    ray.get(actor.remote(options, str(model), Speed(**speed)).start.remote())


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to carry explore out."""

    chunks: int
    in_turn: bool  # one stage at a time

    @property
    def name(self) -> str:
        """Return what the figures call it."""
        return f"{self.chunks} chunk{'s' * (self.chunks > 1)}{', a stage at a time' * self.in_turn}"


def arms_of(chunks: int) -> list[Arm]:
    """Return the arms, the one that the others are compared with first."""
    return [Arm(chunks, True), Arm(chunks, False), Arm(1, False)]


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run the arms, and return what each iteration of each took."""
    model = arguments.model or build_tiny(directory)
    found: dict[str, dict[str, Any]] = {}
    with critique_server(lambda body, before: Say("Wrong.\nVerdict: wrong", delay_s=arguments.delay)) as server:
        for place, arm in enumerate(arms_of(arguments.chunks)):
            own = directory / str(place)
            own.mkdir()
            with open_lab(own, 1) as lab:
                found[arm.name] = run_arm(arm, lab, arguments, model, server.base_url)
                print(f"{arm.name}: {found[arm.name]['rows']}", flush=True)
    return report(arguments, found)


def run_arm(arm: Arm, lab: Lab, arguments: argparse.Namespace, model: Path, base_url: str) -> dict[str, Any]:
    """Run one arm to its end; return its iterations, and the lengths of its completions in the order of their seeds."""
    sets = settings_of(arguments, lab.directory, model, base_url, arm.chunks)
    file = ROOT / "pipelines.yaml"
    if arguments.way == "run":
        os.environ["CGRPO_HOME"] = str(lab.home)
        plan = make_plan(file, "critique-grpo", profile="cpu", presets=list(PRESETS), sets=sets)
        bind(lab, plan, model, json.loads(arguments.speed.read_text())["speed"])
    words = [word for one in sets for word in ("--set", one)]
    words += [word for preset in PRESETS for word in ("--preset", preset)]
    command = ["run", "critique-grpo", "--profile", "cpu", "--name", "arm", *words]
    flow = lab.start(*command, program=IN_TURN if arm.in_turn else None)
    if flow.wait(timeout=1800):
        raise SystemExit((lab.directory / "flow.log").read_text()[-3000:])
    explored = query(lab.home, EXPLORE)
    lengths = [query(lab.home, LENGTHS.format(table=table)).rows for table in ("responses", "refinements")]
    if arguments.way == "run":
        import ray

        ray.shutdown()
    return {"rows": [dict(zip(explored.columns, row, strict=True)) for row in explored.rows], "lengths": lengths}


def report(arguments: argparse.Namespace, arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return medians over iterations, and the ratio of each arm to the first. Raises SystemExit if lengths differ."""
    walls = {name: statistics.median(row["wall"] for row in arm["rows"]) for name, arm in arms.items()}
    first = next(iter(arms))
    if arguments.way == "run" and any(arm["lengths"] != arms[first]["lengths"] for arm in arms.values()):
        raise SystemExit("the arms did not replay the same lengths")
    return {
        "delay_s": arguments.delay,
        "requests": arguments.prompts * 7,
        "explore_seconds": {name: round(wall, 1) for name, wall in walls.items()},
        "ratio": {name: round(wall / walls[first], 3) for name, wall in walls.items()},
        "tokens": {name: [row["tokens"] for row in arm["rows"]] for name, arm in arms.items()},
    }


def build_tiny(directory: Path) -> Path:
    """Return the tiny model, which the real trainer trains."""
    from tiny_model import build_tiny_model

    return build_tiny_model(directory / "model")


def fit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the speed model of the sampler of stored runs, by least squares over their sampling stages."""
    import numpy as np

    rows = np.array(query(data_home(), STEPS, runs=arguments.runs).rows, dtype=float)
    found, *_ = np.linalg.lstsq(rows[:, :3], rows[:, 3], rcond=None)
    residual, spread = rows[:, 3] - rows[:, :3] @ found, rows[:, 3] - rows[:, 3].mean()
    speed = dict(zip(("step", "request", "prompt_token"), np.maximum(found, 0.0).tolist(), strict=True))
    return {"speed": speed, "r2": round(1 - float((residual**2).sum() / (spread**2).sum()), 3), "stages": len(rows)}


def main() -> None:
    """Parse, measure, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("fit", "run", "real"))
    parser.add_argument("runs", nargs="*", help="for fit: runs; for real: a model directory")
    parser.add_argument("--speed", type=Path, help="for run: what fit printed, in a file")
    parser.add_argument("--delay", type=float, default=5.0, help="seconds that a critique takes")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.way == "fit":
        print(json.dumps(fit(arguments)))
        return
    arguments.model = Path(arguments.runs[0]) if arguments.way == "real" else None
    with tempfile.TemporaryDirectory(prefix="cgrpo-overlap-") as directory:
        print(json.dumps(measure(arguments, Path(directory)), indent=1))


if __name__ == "__main__":
    main()
