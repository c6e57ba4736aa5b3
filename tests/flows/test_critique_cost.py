"""What critiques cost and did, over a store with rows made by hand."""

from dataclasses import replace

from storage_rows import a_critique, a_manifest, a_plan, a_refinement, a_response, a_stage, a_verdict

from cgrpo_core.records import Critique, CritiqueAttempt, Refinement, Response, Verdict
from flows.critique_cost import cost_rows
from storage.artifacts import Store
from storage.runs import create_run

PRICES = {"gpt": {"prompt_per_million": 2.0, "completion_per_million": 10.0}}


def attempt(number: int, critique_id: str, reply_id: str, status: str = "agreed") -> CritiqueAttempt:
    return CritiqueAttempt(
        attempt_id=f"a{number}",
        critique_id=critique_id,
        response_id=critique_id.replace("c", "r"),
        attempt=1,
        kind="cot",
        model="gpt",
        reply_id=reply_id,
        status=status,
        text="t",
        verdict_in_text=False,
        finish_reason="stop",
        cut_tokens=0,
        prompt_tokens=1000,
        completion_tokens=100,
        latency_ms=30.0,
        error=None,
    )


def a_run(home, tables):
    stages = []
    for stage, output, record, rows in tables:
        made = a_stage(stage, {output: record.__name__}, iteration=1, chunk=0)
        stages.append(made)
        Store(home).publish(replace(a_manifest(made.key), stage=stage), {output: (record, rows)})
    create_run(home, name="one", plan=a_plan(*stages), options={})


def test_tokens_are_paid_for_once_a_reply_and_refinements_turn_right_and_wrong(tmp_path):
    critiques = [
        a_critique(critique_id=f"c{k}", response_id=f"r{k}", kind="cot", model="gpt", attempts=1) for k in range(4)
    ]
    critiques[3] = a_critique(
        critique_id="c3", response_id="r3", kind="indicative", model="rule", status="disagreed", degraded="indicative"
    )
    right = {"r0": False, "r1": True, "r2": False, "r3": False}
    refined = {"f0": True, "f1": False, "f2": False, "f3": True}
    a_run(
        tmp_path,
        [
            ("rollout", "responses", Response, [a_response(response_id=name) for name in right]),
            (
                *("verify", "verdicts", Verdict),
                [a_verdict(subject_id=name, correct=is_right) for name, is_right in right.items()],
            ),
            ("critique", "critiques", Critique, critiques),
            (
                *("asked", "attempts", CritiqueAttempt),
                [
                    attempt(0, "c0", "same"),
                    attempt(1, "c1", "same"),
                    attempt(2, "c2", "other"),
                    attempt(3, "c3", "third", "disagreed"),
                ],
            ),
            (
                *("refine", "refinements", Refinement),
                [
                    a_refinement(refinement_id=name, response_id=name.replace("f", "r"), critique_id=f"c{name[1]}")
                    for name in refined
                ],
            ),
            (
                *("verify_refinements", "verdicts", Verdict),
                [a_verdict(subject_id=name, correct=is_right) for name, is_right in refined.items()],
            ),
        ],
    )
    asked, by_rule = cost_rows(tmp_path, "one", PRICES)
    assert (asked["kind"], asked["model"], asked["critiques"], asked["degraded"]) == ("cot", "gpt", 3, 0)
    assert (asked["attempts"], asked["replies"], asked["agreed"]) == (4, 3, 3)
    assert (asked["prompt_tokens"], asked["completion_tokens"], asked["latency_ms"]) == (3000, 300, 30.0)
    assert asked["price"] == (3000 * 2.0 + 300 * 10.0) / 1e6
    assert (asked["refinements"], asked["wrong_to_right"], asked["right_to_wrong"]) == (3, 1, 1)
    assert (by_rule["kind"], by_rule["degraded"], by_rule["wrong_to_right"], by_rule["price"]) == (
        *("indicative", 1, 1, None),
    )
    assert by_rule["prompt_tokens"] == 0


def test_a_run_without_critiques_has_no_rows(tmp_path):
    a_run(tmp_path, [("rollout", "responses", Response, [])])
    assert cost_rows(tmp_path, "one", PRICES) == []
