"""A whole run in seconds: real stages, store and verifier; a sampler and a trainer that only pretend."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

from cgrpo_core.ids import digest
from cgrpo_core.records import Policy
from flows.leaves import make_plan
from storage.plans import Plan, StagePlan
from storage.runs import RunLock, create_run, end_attempt, start_attempt
from storage.sealing import seal_stages
from tasks.engines.fake import FakeSampler, FakeTrainer, read_fake_weights, write_fake_weights
from tasks.engines.protocol import PolicyRef, SampleRequest
from tasks.stage import BODIES, StageContext, _publish

ROOT = Path(__file__).parents[1]
SETS = (
    *("run.iterations=2", "run.prompts_per_iteration=4", "run.chunks=2", "rollout.group_size=3", "run.seed=42"),
    *("evaluate.every=2", "checkpoint.every=1"),
)


def reply(request: SampleRequest, policy: PolicyRef) -> str:
    """A digit of 1 to 4, so that some groups have a right answer and some have none."""
    return str(int(digest([policy.weights_sha256, request.seed])[:6], 16) % 4 + 1)


def fake_inputs(directory: Path) -> list[str]:
    """Return settings that name a tiny model, known by fake weights, and tiny data sets, all in `directory`."""
    model = build_tiny_model(directory / "model")
    write_fake_weights(str(model), "0" * 64)
    pairs = [(f"{a} and {b}?", str((a + b) % 4 + 1)) for a in range(4) for b in range(3)]
    rows = [{"problem": text, "answer": answer, "solution": f"It is {answer}."} for text, answer in pairs]
    for name, part in (("train", rows[:8]), ("eval", rows[8:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return [
        f"inputs.base_model={{kind: path, path: {model}}}",
        f"inputs.problems={{kind: jsonl, path: {directory / 'train.jsonl'}}}",
        f"inputs.eval_problems={{kind: jsonl, path: {directory / 'eval.jsonl'}}}",
    ]


def fake_engines(patch: pytest.MonkeyPatch) -> None:
    """Have stages lease engines that pretend."""
    sampler, trainer = FakeSampler(reply), FakeTrainer()

    def lease_sampler(home, declaration, base_model_dir, policy, rebuild=None):
        wanted = PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)
        if sampler.held() != wanted:
            sampler.load(wanted, str(Path(home) / policy.weights if policy.weights else base_model_dir))
        return sampler

    patch.setattr("tasks.policies.lease_sampler", lease_sampler)
    patch.setattr("tasks.policies.lease_trainer", lambda home, declaration, base: trainer)
    patch.setattr("tasks.update.model_weights_digest", read_fake_weights)
    patch.setattr("tasks.lineage.model_weights_digest", read_fake_weights)


def plan_of(sets: list[str], pipeline: str, presets: Sequence[str]) -> Plan:
    return make_plan(ROOT / "pipelines.yaml", pipeline, profile="cpu", presets=list(presets), sets=[*SETS, *sets])


def run_stage(home: Path, stage: StagePlan, base_dir: str) -> None:
    from storage.artifacts import Store

    import_module(stage.task.partition(":")[0])
    _publish(BODIES[stage.task], StageContext(stage, home, Store(home), base_dir))


def fake_run(
    home: Path,
    sets: list[str],
    name: str = "one",
    until: int | None = None,
    pipeline: str = "critique-grpo",
    presets: Sequence[str] = (),
) -> Plan:
    """Carry out a run under fake engines, all of it or `until` an iteration; then it was killed there."""
    plan = plan_of(sets, pipeline, presets)
    create_run(home, name=name, plan=plan, options={"file": str(ROOT / "pipelines.yaml"), "profile": "cpu"})
    with RunLock(home, name):
        number = start_attempt(home, name)
        for stage in plan.stages:
            if until is None or (stage.iteration or 0) <= until:
                run_stage(home, stage, plan.config["base_dir"])
        if until is None:
            seal_stages(home, name, plan.stages)
            end_attempt(home, name, number, "completed")
    return plan


def policy_of(home: Path, stage: StagePlan) -> Policy:
    from storage.artifacts import Store

    return Store(home).read(stage.key, "policy", Policy)[0]
