"""Calling a stage body without Prefect: a context with a store of its own, and records made by hand."""

from dataclasses import asdict
from pathlib import Path

from cgrpo_core.params import BLOCKS
from cgrpo_core.records import Problem, Prompt, Refinement, Response, Verdict
from storage.artifacts import Store
from storage.plans import StagePlan
from tasks.stage import BODIES, Published, StageContext


def call(path: str, home: Path, *blocks: object, **records: object) -> Published:
    """Call the body of `path` ("tasks.select:select_refinements") with parameter blocks and input records."""
    __import__(path.partition(":")[0])
    names = {known: name for name, known in BLOCKS.items()}
    plan = StagePlan(
        stage=path.partition(":")[2],
        task=path,
        section="explore",
        iteration=1,
        chunk=0,
        key="ab" * 32,
        ingredients={"seed": 17},
        inputs={},
        leaves={},
        outputs={},
        params={names[type(block)]: asdict(block) for block in blocks},
        engine=None,
        retries=0,
        resources={},
    )
    return BODIES[path](StageContext(plan, home, Store(home), str(home)), **records)


def problem(problem_id: str = "q", ground_truth: str = "4") -> Problem:
    return Problem(
        problem_id=problem_id, question="2 + 2?", ground_truth=ground_truth, solution=None, source="test", level=None
    )


def prompt(group_id: str = "g", problem_id: str = "q") -> Prompt:
    return Prompt(
        prompt_id=group_id,
        problem_id=problem_id,
        iteration=1,
        slot=0,
        template="number",
        text="2 + 2?",
        token_ids=(1, 2),
    )


def response(response_id: str, group_id: str = "g", text: str = "4") -> Response:
    return Response(
        response_id=response_id,
        group_id=group_id,
        problem_id="q",
        index=0,
        text=text,
        token_ids=(5, 6),
        sampling_logprobs=(-0.5, -0.25),
        finish_reason="stop",
        policy_version=0,
        seed=1,
    )


def refinement(refinement_id: str, response_id: str, group_id: str = "g") -> Refinement:
    return Refinement(
        refinement_id=refinement_id,
        response_id=response_id,
        critique_id=f"c-{response_id}",
        group_id=group_id,
        problem_id="q",
        index=0,
        prompt_token_ids=(1, 2, 3, 4),
        text="4",
        token_ids=(7,),
        sampling_logprobs=(-0.125,),
        finish_reason="stop",
        policy_version=0,
        seed=2,
    )


def verdict(subject_id: str, reward: float | None) -> Verdict:
    return Verdict(
        subject_id=subject_id,
        answer="4",
        correct=reward == 1.0,
        status="timeout" if reward is None else "ok",
        reward=reward,
        verifier="math_verify",
        elapsed_ms=1.0,
    )
