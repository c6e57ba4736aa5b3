"""Runs with a few published stages, made by hand: no engine is needed to ask why two runs differ."""

import json
from pathlib import Path
from typing import Any

from cgrpo_core.ids import digest, make_id
from cgrpo_core.records import Critique, Problem, Prompt, Response, Verdict
from flows.fork import fork
from flows.plan import compile_plan
from flows.rerun import Rerun, rerun
from flows.resolve import resolve, respecify
from storage.artifacts import Manifest, Store
from storage.durable import json_bytes
from storage.plans import Plan, StagePlan
from storage.runs import create_run
from storage.schemas import RECORDS

FILE = Path(__file__).parents[2] / "pipelines.yaml"
SETS = ("run.iterations=2", "run.prompts_per_iteration=2", "rollout.group_size=2")


def identities(spec: Any) -> dict[str, dict[str, str]]:
    return {name: {"digest": digest(leaf.model_dump())} for name, leaf in spec.inputs.items()}


def as_frozen(plan: Plan) -> Plan:
    """Return a plan as it is read back from a run: JSON keeps no order of keys."""
    return Plan.from_json(json.loads(json_bytes(plan.to_json())))


def plan_of(*sets: str, profile: str = "cpu", pipeline: str = "critique-grpo") -> Plan:
    spec = resolve(FILE, pipeline, profile=profile, sets=[*SETS, *sets])
    return as_frozen(compile_plan(spec, identities(spec)))


def fork_of(parent: Plan, at: int, *sets: str) -> Plan:
    spec = respecify(parent.config, sets)
    return fork(parent, spec, identities(spec), at)


def rerun_of(parent: Plan, stage: str, *sets: str, **more: Any) -> Plan:
    spec = respecify(parent.config, sets)
    what = Rerun(stage=stage, **{"iteration": None, "to": None, "salt": "salt", "reseed": None, **more})
    return rerun(parent, spec, identities(spec), what)


def make_run(home: Path, name: str, plan: Plan, parent: str | None = None) -> None:
    create_run(home, name=name, plan=plan, options={}, parent=parent)


def publish(home: Path, stage: StagePlan, **more: Any) -> None:
    """Publish a stage with rows that hang on its key by their ids alone; `critique` says what its kind says."""
    tables = {output: (RECORDS[record], _rows(stage, record)) for output, record in stage.outputs.items()}
    inputs = {name: [f"{ref.key}/{ref.output}" for ref in refs] for name, refs in stage.inputs.items()}
    values: dict[str, Any] = {
        **{"key": stage.key, "stage": stage.stage, "task": stage.task, "stage_version": 1},
        **{"iteration": stage.iteration, "chunk": stage.chunk, "started_at": 100.0, "ended_at": 104.0},
        **{"ingredients": stage.ingredients, "params": stage.params, "inputs": inputs, "engine": stage.engine},
    }
    Store(home).publish(Manifest(**{**values, **more}), tables)


def publish_all(home: Path, plan: Plan, *stages: str, iteration: int | None = None) -> list[StagePlan]:
    """Publish the named stages of a plan (all of them without names), of one iteration or of all."""
    chosen = [
        stage
        for stage in plan.stages
        if (not stages or stage.stage in stages) and (iteration is None or stage.iteration in (None, iteration))
    ]
    for stage in chosen:
        publish(home, stage)
    return chosen


def _rows(stage: StagePlan, record: str) -> list[Any]:
    key, source = stage.key, {name: refs[0].key for name, refs in stage.inputs.items()}
    if record == "Problem":
        return [_problem(number) for number in range(2)]
    if record == "Prompt":
        return [_prompt(key, slot, stage.iteration or 0) for slot in range(2)]
    if record == "Response":
        return [_response(key, source["prompts"], slot, index) for slot in range(2) for index in range(2)]
    if record == "Verdict" and "responses" in source:
        return [_verdict(make_id("r", source["responses"], slot, index)) for slot in range(2) for index in range(2)]
    if record == "Critique":
        kind = stage.params["critique"]["kind"]
        ids = [make_id("r", source["responses"], slot, index) for slot in range(2) for index in range(2)]
        return [_critique(key, response_id, kind) for response_id in ids]
    return []


def _problem(number: int) -> Problem:
    return Problem(
        problem_id=f"problem-{number}", question=f"{number}?", ground_truth="4", solution=None, source="s", level=None
    )


def _prompt(key: str, slot: int, iteration: int) -> Prompt:
    return Prompt(
        prompt_id=make_id("p", key, slot),
        problem_id=f"problem-{slot}",
        iteration=iteration,
        slot=slot,
        template="number",
        text="2 + 2?",
        token_ids=(1, 2),
    )


def _response(key: str, prompts: str, slot: int, index: int) -> Response:
    return Response(
        response_id=make_id("r", key, slot, index),
        group_id=make_id("p", prompts, slot),
        problem_id=f"problem-{slot}",
        index=index,
        text="4",
        token_ids=(5, 6),
        sampling_logprobs=(-0.5, -0.25),
        finish_reason="stop",
        policy_version=0,
        seed=1,
    )


def _verdict(subject_id: str) -> Verdict:
    return Verdict(
        subject_id=subject_id, answer="4", correct=False, status="ok", reward=0.0, verifier="v", elapsed_ms=1.0
    )


def _critique(key: str, response_id: str, kind: str) -> Critique:
    return Critique(
        critique_id=make_id("c", key, response_id),
        response_id=response_id,
        kind=kind,
        text=f"a remark of kind {kind}",
        verdict_in_text=None,
        agreed=None,
        attempts=1,
        model="rule",
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        status="ok",
    )
