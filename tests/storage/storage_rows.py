"""Small rows, manifests and plans that the storage tests share."""

import hashlib
from typing import Any

from cgrpo_core.records import (
    Critique,
    EvalResult,
    Policy,
    Problem,
    Prompt,
    Refinement,
    Response,
    SelectedRefinement,
    UpdateMetrics,
    Verdict,
)
from storage.artifacts import Manifest
from storage.plans import Plan, StagePlan


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def a_problem(**changes: Any) -> Problem:
    values = {
        "problem_id": "p1",
        "question": "2+2?",
        "ground_truth": "4",
        "solution": None,
        "source": "s",
        "level": None,
    }
    return Problem(**(values | {"level": None} | changes))


def a_prompt(**changes: Any) -> Prompt:
    values = {"prompt_id": "g1", "problem_id": "p1", "iteration": 7, "slot": 0, "template": "plain", "text": "2+2?"}
    return Prompt(**(values | {"token_ids": (1, 2)} | changes))


def a_response(**changes: Any) -> Response:
    values = {"response_id": "r1", "group_id": "g1", "problem_id": "p1", "index": 0, "text": "5", "token_ids": (7, 2)}
    sampled = {"sampling_logprobs": (-0.5, -0.25), "finish_reason": "stop", "policy_version": 0, "seed": 3}
    return Response(**(values | sampled | changes))


def a_verdict(**changes: Any) -> Verdict:
    values = {"subject_id": "r1", "answer": "5", "correct": False, "status": "ok", "reward": 0.0}
    return Verdict(**(values | {"verifier": "math_verify", "elapsed_ms": 1.5} | changes))


def a_critique(**changes: Any) -> Critique:
    values = {"critique_id": "c1", "response_id": "r1", "kind": "indicative", "text": "This is wrong.", "attempts": 1}
    judged = {"verdict_in_text": None, "agreed": None, "model": "none", "prompt_tokens": 0, "completion_tokens": 0}
    return Critique(**(values | judged | {"latency_ms": 0.0, "status": "ok"} | changes))


def a_refinement(**changes: Any) -> Refinement:
    values = {"refinement_id": "f1", "response_id": "r1", "critique_id": "c1", "group_id": "g1", "problem_id": "p1"}
    sampled = {"index": 0, "prompt_token_ids": (1, 2, 3), "text": "4", "token_ids": (9,), "sampling_logprobs": (-1.0,)}
    return Refinement(**(values | sampled | {"finish_reason": "stop", "policy_version": 0, "seed": 4} | changes))


def a_selection(**changes: Any) -> SelectedRefinement:
    return SelectedRefinement(**({"group_id": "g1", "refinement_id": "f1", "reason": "correct"} | changes))


def a_policy(**changes: Any) -> Policy:
    values = {"policy_version": 0, "parent": None, "weights_sha256": "00", "weights": None, "checkpoint": None}
    return Policy(**(values | changes))


def an_eval_result(**changes: Any) -> EvalResult:
    values = {
        "problem_id": "p1",
        "policy_version": 0,
        "sample_index": 0,
        "benchmark": "eval_problems",
        "template": "number",
        "temperature": 0.0,
        "correct": True,
        "status": "ok",
    }
    return EvalResult(**(values | {"answer": "4", "text": "4", "tokens": 1, "finish_reason": "stop"} | changes))


def update_metrics(**changes: Any) -> UpdateMetrics:
    absent = ["grad_norm", "entropy", "clip_fraction_low", "clip_fraction_high", "shaping_mean", "off_policy_prob_mean"]
    absent += ["mismatch_weight_mean", "mismatch_capped_fraction", "kl_to_reference", "divergence_mean"]
    absent += ["kl_to_sampler", "logprob_gap_mean", "logprob_gap_max"]
    counts = [
        "samples",
        "samples_trained",
        "samples_skipped",
        "response_tokens",
        "refinement_tokens",
        "solution_tokens",
        "critique_tokens",
        "non_finite_steps",
    ]
    values = {
        "policy_version": 1,
        "optimizer_step": 1,
        "status": "ok",
        "loss": 0.5,
        "learning_rate": 1e-6,
        "seconds": 2.0,
    }
    rest = {"non_finite_steps": 0, "seconds": 2.0}
    return UpdateMetrics(**(dict.fromkeys(absent) | dict.fromkeys(counts, 1) | values | rest | changes))


def a_manifest(key: str, **changes: Any) -> Manifest:
    values = {"key": key, "stage": "rollout", "task": "tasks.rollout:sample_responses", "stage_version": 1}
    times = {"iteration": 1, "chunk": 0, "started_at": 100.0, "ended_at": 102.5}
    return Manifest(**(values | times | changes))


def a_stage(
    stage: str, outputs: dict[str, str], iteration: int | None = None, chunk: int | None = None, **changes: Any
) -> StagePlan:
    section = "setup" if iteration is None else "learn" if chunk is None else "explore"
    values: dict[str, Any] = {"stage": stage, "task": f"tasks.{stage}:run", "section": section, "iteration": iteration}
    values |= {"chunk": chunk, "key": key_of(f"{stage} {iteration} {chunk}"), "outputs": outputs, "retries": 0}
    values |= {"ingredients": {}, "inputs": {}, "leaves": {}, "params": {}, "engine": None, "resources": {}}
    return StagePlan(**(values | changes))


def a_plan(*stages: StagePlan) -> Plan:
    return Plan(pipeline="critique-grpo", config={"params": {"run": {"seed": 17}}}, stages=stages)
