"""A thousand kills of the stages alone: no Prefect, no Ray, fakes for the engines, so that a kill costs half a second.

    python benchmarks/kill_stages.py [--kills 1000] [--seed 1] [--directory DIR]

What kill_everywhere.py does to whole runs, done often to the part that keeps data: bodies of all stages, publishing,
checkpoints, replays, data position and seeds are the program's own. A forked process carries out what is left of a run;
it is killed at a random moment, another one goes on, and after every kill all that is published is compared with the
undisturbed run. Engines are new in every process, so that each goes on from a checkpoint and a replay, or from nothing.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kill_everywhere
from kill_lab import settings

from cgrpo_core.ids import derive_seed
from cgrpo_core.records import Verdict
from flows.leaves import make_plan
from storage.artifacts import Store
from storage.plans import Plan

NAME = kill_everywhere.NAME
ITERATIONS = 3
MAXIMUM = 60  # processes that work on one run; more means that it never ends


def planned(directory: Path) -> Plan:
    """Return the plan of the run: the tiny model's tokenizer, six problems, three iterations, two epochs."""
    sets = [word for word in settings(directory, 1) if word != "--set"]
    file = Path(kill_everywhere.__file__).parents[1] / "pipelines.yaml"
    sets += [f"run.iterations={ITERATIONS}", "run.chunks=2", "checkpoint.every=2"]
    return make_plan(file, "critique-grpo", profile="cpu", presets=[], sets=sets)


def with_fakes(model: Path) -> None:
    """Put fakes into the place of engines and verifier, in this process; what they answer follows from the question."""
    from tasks import advantage, critique, dataset, evaluate, policies, refine, rollout, select, update, verify  # noqa: F401
    from tasks.engines.fake import FakeSampler, FakeTrainer, write_fake_weights
    from tasks.models import model_weights_digest
    from tasks.tokenizer import load_tokenizer

    write_fake_weights(str(model), model_weights_digest(model))
    sampler, trainer = FakeSampler(), FakeTrainer()

    def lease_sampler(home: Path, declaration: Any, base: Path, policy: Any, rebuild: Any) -> FakeSampler:
        wanted = policies.policy_ref(policy)
        if sampler.held() != wanted:
            stored = policy.weights is not None and policies.complete(home, policy.weights)
            sampler.load(wanted, str(home / policy.weights) if stored else rebuild(policy))
        return sampler

    policies.lease_sampler = lease_sampler
    policies.lease_trainer = lambda *_: trainer
    verify.verify_all = lambda cases, params: [verdict_on(case) for case in cases]
    evaluate.verify_all = verify.verify_all
    load_tokenizer(model)  # imported here, once, and not in every forked process


def verdict_on(case: Any) -> Verdict:
    """Return a verdict that follows from the text: right for one in four."""
    subject, text = (case[0], case[1]) if isinstance(case, tuple) else (case.subject_id, case.text)
    right = derive_seed(text) % 4 == 0
    values = {"answer": text[-4:], "correct": right, "status": "ok", "reward": float(right)}
    return Verdict(subject_id=subject, **values, verifier="fake", elapsed_ms=0.0)


def carry_out(home: Path, plan: Plan, base_dir: str) -> None:
    """Do what is left of a run, stage after stage, as `tasks.stage` does."""
    from importlib import import_module

    from tasks.stage import BODIES, StageContext, _publish

    store = Store(home)
    for stage in plan.stages:
        import_module(stage.task.partition(":")[0])
        if store.find(stage.key) is None:
            _publish(BODIES[stage.task], StageContext(stage, home, store, base_dir))


def in_a_child(home: Path, plan: Plan, base_dir: str, seconds: float | None) -> int | None:
    """Carry out in a forked process, killed after `seconds`; return its exit code, None if it was killed."""
    child = os.fork()
    if not child:
        try:
            carry_out(home, plan, base_dir)
        except BaseException as error:  # noqa: BLE001 - a forked process must never return into its parent's code
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def kill_once(home: Path, reference: Path, plan: Plan, draw: random.Random, usual: float) -> dict[str, Any]:
    """Kill one run at random moments until it ends; return where the kills fell and what differed."""
    place, first = SimpleNamespace(home=home, reference=reference), dict[str, float]()
    fell: list[str] = []
    differences: list[str] = []
    for _ in range(MAXIMUM):
        code = in_a_child(home, plan, plan.config["base_dir"], draw.uniform(0, usual * 0.4))
        differences += kill_everywhere.compare(place, plan, first)  # type: ignore[arg-type]
        if code is not None:
            differences += [f"it ended with exit code {code}"] if code else []
            break
        open_stages = [stage.stage for stage in plan.stages if not Store(home).has(stage.key)]
        fell.append((open_stages or ["the end"])[0] + (" while writing" if any_writing(home, fell) else ""))
    if any(not Store(home).has(stage.key) for stage in plan.stages):
        differences.append(f"not complete after {MAXIMUM} processes")
    return {"fell": fell, "differences": differences}


def any_writing(home: Path, fell: list[str]) -> bool:
    """Tell whether the last kill left something half-written that none before it had left."""
    left = len(list((home / "tmp").iterdir())) if (home / "tmp").is_dir() else 0
    return left > sum(place.endswith("writing") for place in fell)


def run_kills(directory: Path, kills: int, seed: int) -> tuple[Counter[str], list[str], int]:
    """Return how many kills fell where, all differences, and how many runs it took."""
    plan, draw = planned(directory), random.Random(seed)
    with_fakes(directory / "model")
    plan = planned(directory)  # the fakes' file is part of the model now
    reference, home = directory / "reference", directory / "home"
    for place in (reference, home):
        shutil.rmtree(place, ignore_errors=True)
    began = time.monotonic()
    if in_a_child(reference, plan, plan.config["base_dir"], None):
        sys.exit("the undisturbed run failed")
    usual = time.monotonic() - began
    places, differences, runs = Counter[str](), list[str](), 0
    while places.total() < kills:
        shutil.rmtree(home, ignore_errors=True)
        result = kill_once(home, reference, plan, draw, usual)
        places.update(result["fell"])
        differences += [f"run {runs}: {text}" for text in result["differences"]]
        runs += 1
    return places, differences, runs


def main() -> None:
    """Kill, compare, print the places and the verdict as JSON. Exits 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="by default a new one")
    arguments = parser.parse_args()
    directory = (arguments.directory or Path(tempfile.mkdtemp(prefix="kill-stages-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    places, differences, runs = run_kills(directory, arguments.kills, arguments.seed)
    figures = {"kills": places.total(), "runs": runs, "seconds": round(time.monotonic() - began), "fell_in": places}
    print(json.dumps({**figures, "differences": differences}, indent=2))
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
