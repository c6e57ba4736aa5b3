"""What it saves to take old log-probs from the sampler, and what it changes: one stored batch, trained on both ways.

    python benchmarks/old_logprobs.py RUN [--iteration 1] [--prompts 8] [--mini-batch-prompts 4] [--repeats 2]

The batch and the model are those of an iteration of a run in CGRPO_HOME, whose parent policy is the base model. Each
way starts from that model; the two take turns in ABBA order, in one process. What differs afterwards is set against
how far the update moved the weights.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgrpo_core.records import Policy
from cgrpo_core.weights import weights_distance
from flows.home import data_home
from storage.artifacts import Store
from storage.runs import read_plan
from tasks.engines.deepspeed_trainer import read_options
from tasks.engines.export import read_model
from tasks.engines.protocol import PolicyRef, UpdateRequest
from tasks.engines.trainer_rank import TrainerRank
from tasks.models import resolve_model
from tasks.policies import policy_ref, read_policy, stored_request

WAYS = ("trainer", "sampler")


def stored_batch(run: str, iteration: int) -> tuple[UpdateRequest, PolicyRef, Path, dict[str, Any]]:
    """Return the update of an iteration, the policy that it starts from, the base model, the trainer's declaration."""
    home = data_home()
    plan, store = read_plan(home, run), Store(home)
    stage = next(one for one in plan.stages if one.iteration == iteration and one.stage == "update")
    update = store.find(stage.key)
    if update is None or stage.engine is None:
        raise SystemExit(f"the update of iteration {iteration} of {run} is not published")
    parent: Policy = read_policy(store, stage.inputs["policy"][0].key).policy
    if parent.parent is not None:
        raise SystemExit("take the first iteration: its policy is the base model, which is there for certain")
    base = resolve_model(stage.engine["model"], home, Path(plan.config["base_dir"]))
    return stored_request(store, update), policy_ref(parent), base, stage.engine


def train(rank: TrainerRank, request: UpdateRequest, policy: PolicyRef, base: Path) -> dict[str, Any]:
    """Return what one update from the base model took and gave, with the weights after it."""
    rank.load_weights(policy, str(base))
    began, spent = time.perf_counter(), time.process_time()
    report = rank.update(request, policy)
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    assert rank._engine is not None
    weights = {name: tensor.clone() for name, tensor in rank._engine.named_weights()}
    return {"seconds": seconds, "cpu_seconds": cpu, "report": report, "weights": weights}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take the turns and return the figures."""
    request, policy, base, declaration = stored_batch(arguments.run, arguments.iteration)
    optimizer = replace(request.optimizer, mini_batch_prompts=arguments.mini_batch_prompts)
    groups = list(dict.fromkeys(sample.group_id for sample in request.samples))[: arguments.prompts]
    samples = tuple(sample for sample in request.samples if sample.group_id in groups)
    request = replace(request, optimizer=optimizer, samples=samples)
    rank = TrainerRank(0, 1, str(base), read_options(declaration))
    rank.join(rank.meeting_file())
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(arguments.repeats):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            done = train(rank, replace(request, loss=replace(request.loss, old_logprobs=way)), policy, base)
            assert done["report"].old_logprobs == way, "with one step there is nothing to choose: more mini-batches"
            turns[way] = [*({**one, "weights": None} for one in turns[way]), done]
            print(f"{way}: {done['seconds']:.1f} s, {done['cpu_seconds']:.1f} CPU-s", flush=True)
    newest = {way: turns[way][-1] for way in WAYS}
    apart = weights_distance(newest["sampler"]["weights"], newest["trainer"]["weights"], read_model(base))
    return {
        way: {
            "seconds": round(statistics.median(one["seconds"] for one in turns[way]), 1),
            "cpu_seconds": round(statistics.median(one["cpu_seconds"] for one in turns[way]), 1),
            "loss": newest[way]["report"].loss,
            "grad_norm": newest[way]["report"].grad_norm,
            "logprob_gap_max": newest[way]["report"].logprob_gap_max,
        }
        for way in WAYS
    } | {
        "steps": newest["trainer"]["report"].optimizer_step,
        "samples_trained": newest["trainer"]["report"].samples_trained,
        "weights_apart_of_movement": apart.relative,
        "weights_apart_at_most": apart.max_abs,
    }


def main() -> None:
    """Parse, measure, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--iteration", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--mini-batch-prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
