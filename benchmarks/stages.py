"""Tokens a second of the stages rollout and refine, from reading their inputs to the published rows, against raw vLLM.

    python benchmarks/stages.py MODEL_DIRECTORY [--repeats 4] [--max-tokens 40]

The stages are those of `critique-grpo` under the profile `cpu`, each turn with another seed, so with other prompts and
responses. vLLM's own `LLM.generate` answers the same requests, timed inside its own process. Both engines are alive
in one Ray; which of the two comes first alternates. A stage's time is that of its body and its publishing, without
Prefect.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sampling import RawVllm

from flows.cluster import ray_cluster
from flows.leaves import make_plan
from storage.artifacts import Store
from storage.plans import Plan, StagePlan
from tasks import policies
from tasks.engines.protocol import SampleRequest, SamplingSettings
from tasks.engines.sampler_options import read_declaration
from tasks.stage import BODIES, StageContext, _publish

ROOT = Path(__file__).parents[1]
MEASURED = ("rollout", "refine")


class Asked(Exception):
    """What a stage would ask of its sampler."""

    def __init__(self, requests: list[SampleRequest], settings: SamplingSettings) -> None:
        super().__init__()
        self.requests, self.settings = requests, settings


class Recorder:
    """A sampler that answers with what it was asked."""

    def sample(self, requests: list[SampleRequest], settings: SamplingSettings, expect: object) -> None:
        """Raise it."""
        raise Asked(requests, settings)


@contextmanager
def recording() -> Iterator[None]:
    """Have stages lease the recorder until the block ends."""
    real = policies.lease_sampler
    policies.lease_sampler = lambda *arguments: Recorder()  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        policies.lease_sampler = real


def publish(home: Path, plan: Plan, stage: StagePlan) -> tuple[int, float]:
    """Carry a stage out unless it is published; return the tokens that it sampled, and seconds."""
    __import__(stage.task.partition(":")[0])
    store, began = Store(home), time.perf_counter()
    if store.has(stage.key):
        return 0, 0.0
    manifest = _publish(BODIES[stage.task], StageContext(stage, home, store, plan.config["base_dir"]))
    return int(manifest.metrics.get("completion_tokens", 0)), time.perf_counter() - began


def asked_of(home: Path, plan: Plan, stage: StagePlan) -> Asked:
    """Return what a stage will ask, without asking it."""
    __import__(stage.task.partition(":")[0])
    try:
        with recording():
            _publish(BODIES[stage.task], StageContext(stage, home, Store(home), plan.config["base_dir"]))
    except Asked as asked:
        return asked
    raise SystemExit(f"{stage.stage} asks for nothing")


def turn(home: Path, plan: Plan, raw: Any, raw_first: bool) -> dict[str, dict[str, float]]:
    """Return tokens a second of both, for each measured stage of one iteration."""
    import ray

    speeds: dict[str, dict[str, float]] = {}
    for stage in plan.stages:
        if stage.section == "learn" or stage.stage == "evaluate_base":
            continue
        if stage.stage not in MEASURED:
            publish(home, plan, stage)
            continue
        asked = asked_of(home, plan, stage)
        found: dict[str, float] = {}
        for who in ("raw", "stage") if raw_first else ("stage", "raw"):
            if who == "raw":
                tokens, seconds = ray.get(raw.generate.remote(asked.requests, asked.settings))
            else:
                tokens, seconds = publish(home, plan, stage)
            found[who] = tokens / seconds
        speeds[stage.stage] = found
        print(f"{stage.stage}: raw {found['raw']:.0f}, stage {found['stage']:.0f} tokens/s", flush=True)
    return speeds


def measure(arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Run all turns; the first, which starts the sampler, is not counted."""
    import ray

    sets = [f"inputs.base_model={{kind: path, path: {arguments.model.resolve()}}}", "refine.gate=all"]
    sets += [f"{block}.max_response_tokens={arguments.max_tokens}" for block in MEASURED]
    plans = [
        make_plan(
            ROOT / "pipelines.yaml",
            "critique-grpo",
            profile="cpu",
            presets=[],
            sets=[*sets, "run.iterations=1", f"run.seed={seed}"],
        )
        for seed in range(arguments.repeats + 1)
    ]
    engine = next(stage.engine for stage in plans[0].stages if stage.stage == "rollout")
    assert engine is not None
    options = read_declaration(engine).options
    raw = ray.remote(RawVllm).options(num_cpus=0, runtime_env={"env_vars": options.environment()})
    actor = raw.remote(options, str(arguments.model.resolve()))
    turns = [turn(home, plan, actor, place % 2 == 0) for place, plan in enumerate(plans)][1:]
    return {
        stage: {
            "raw": round(statistics.median(one[stage]["raw"] for one in turns), 1),
            "stage": round(statistics.median(one[stage]["stage"] for one in turns), 1),
            "ratio": round(statistics.median(one[stage]["stage"] / one[stage]["raw"] for one in turns), 3),
            "ratios": [round(one[stage]["stage"] / one[stage]["raw"], 3) for one in turns],
        }
        for stage in MEASURED
    }


def main() -> None:
    """Parse, measure, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory in Hugging Face format")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cgrpo-stages-") as home, ray_cluster():
        print(json.dumps(measure(arguments, Path(home)), indent=1))


if __name__ == "__main__":
    main()
