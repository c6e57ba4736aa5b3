"""Gates hold an iteration to what was declared: each built-in one finds the fault that it is named after."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import storage_rows as rows_of
from storage_rows import a_manifest, a_plan, a_stage

from cgrpo_core.records import TrainingSample
from flows.gates import GateFailed, GateInvalid, check_iteration, check_queries, raise_failed
from flows.resolve import resolve
from storage import catalog
from storage.artifacts import Store
from storage.catalog import query
from storage.gates import accept_gates, read_gates
from storage.plans import Plan, StagePlan
from storage.runs import create_run
from storage.schemas import RECORDS

FILE = Path(__file__).parents[2] / "pipelines.yaml"
DECLARED = resolve(FILE, "critique-grpo").gates
Rows = dict[str, list[Any]]


def stages(iterations: int) -> list[StagePlan]:
    found = [a_stage("load_problems", {"problems": "Problem"})]
    for i in range(1, iterations + 1):
        for name, output, record in (
            ("rollout", "responses", "Response"),
            ("verify", "verdicts", "Verdict"),
            ("critique", "critiques", "Critique"),
            ("refine", "refinements", "Refinement"),
            ("verify_refinements", "verdicts", "Verdict"),
            ("advantage", "samples", "TrainingSample"),
        ):
            found.append(a_stage(name, {output: record}, i, 0))
        found.append(a_stage("update", {"metrics": "UpdateMetrics"}, i))
        found.append(a_stage("evaluate", {"results": "EvalResult"}, i))
    return found


def sample(name: str, advantage: float) -> TrainingSample:
    values = {"sample_id": name, "group_id": "g1", "origin": "response", "prompt_token_ids": (1,), "token_ids": (2,)}
    return TrainingSample(**values, sampling_logprobs=(-1.0,), reward=0.0, advantage=advantage, weight=1.0)


def healthy(iteration: int) -> dict[str, Rows]:
    """One group of two responses, one of them right; the wrong one is refined by working it out."""
    version = iteration - 1
    responses = [rows_of.a_response(response_id=f"r{k}", index=k, policy_version=version) for k in (1, 2)]
    verdicts = [rows_of.a_verdict(subject_id=f"r{k}", correct=k == 2, reward=float(k == 2)) for k in (1, 2)]
    named = rows_of.a_critique(text="It is wrong. The correct answer is 4.")
    worked = rows_of.a_refinement(text="2 + 2 = 4", policy_version=version)
    metrics = rows_of.update_metrics(policy_version=iteration, logprob_gap_mean=1e-6, non_finite_steps=0)
    return {
        "rollout": {"responses": responses},
        "verify": {"verdicts": verdicts},
        "critique": {"critiques": [named]},
        "refine": {"refinements": [worked]},
        "verify_refinements": {"verdicts": [rows_of.a_verdict(subject_id="f1", correct=True, reward=1.0)]},
        "advantage": {"samples": [sample("r1", -0.5), sample("r2", 0.5)]},
        "update": {"metrics": [metrics]},
        "evaluate": {"results": [rows_of.an_eval_result(policy_version=iteration)]},
    }


def publish(home: Path, *iterations: dict[str, Rows], declared: dict[str, Any] | None = None) -> Plan:
    listed = stages(len(iterations))
    for stage in listed:
        rows = iterations[stage.iteration - 1][stage.stage] if stage.iteration else {"problems": [rows_of.a_problem()]}
        tables = {name: (RECORDS[record], rows[name]) for name, record in stage.outputs.items()}
        Store(home).publish(a_manifest(stage.key, stage=stage.stage, iteration=stage.iteration), tables)
    values = {name: gate.model_dump() for name, gate in (declared or DECLARED).items()}
    plan = dataclasses.replace(a_plan(*listed), config={"gates": values})
    create_run(home, name="one", plan=plan, options={})
    return plan


def changed(iteration: int, stage: str, output: str, **fields: Any) -> dict[str, Rows]:
    made = healthy(iteration)
    made[stage][output] = [dataclasses.replace(row, **fields) for row in made[stage][output]]
    return made


def statuses(home: Path, plan: Plan, iteration: int = 1) -> dict[str, str]:
    return {result.gate: result.status for result in check_iteration(home, "one", plan, iteration)}


def test_a_healthy_iteration_passes_every_gate(tmp_path: Path) -> None:
    plan = publish(tmp_path, *(healthy(i) for i in (1, 2, 3)))
    assert set(statuses(tmp_path, plan, 3).values()) == {"ok"}
    first = statuses(tmp_path, plan, 1)
    assert {name for name, status in first.items() if status != "ok"} == {"constant_reward"}, "it needs 3 iterations"
    assert first["constant_reward"] == "not_measured"


@pytest.mark.parametrize(
    ("gate", "status", "stage", "output", "fields"),
    [
        ("policy_served", "fail", "rollout", "responses", {"policy_version": 7}),
        ("policy_served", "fail", "refine", "refinements", {"policy_version": 7}),
        ("policy_served", "fail", "evaluate", "results", {"policy_version": 0}),
        ("logprob_gap", "warn", "update", "metrics", {"logprob_gap_mean": 0.2}),
        ("verifier_faults", "warn", "verify_refinements", "verdicts", {"status": "timeout", "reward": None}),
        ("verifier_down", "fail", "verify", "verdicts", {"status": "error", "reward": None}),
        ("equal_groups", "warn", "advantage", "samples", {"advantage": 0.0}),
        ("truncated", "warn", "rollout", "responses", {"finish_reason": "length"}),
        ("non_finite_gradients", "warn", "update", "metrics", {"non_finite_steps": 1}),
        ("answer_leakage", "warn", "refine", "refinements", {"text": "As you say, the answer is 4."}),
    ],
)
def test_each_gate_finds_the_fault_that_it_is_named_after(
    tmp_path: Path, gate: str, status: str, stage: str, output: str, fields: dict[str, Any]
) -> None:
    plan = publish(tmp_path, changed(1, stage, output, **fields))
    assert statuses(tmp_path, plan)[gate] == status


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_rewards_that_are_all_equal_for_three_iterations_fail_the_third(tmp_path: Path, reward: float) -> None:
    wrong = [changed(i, "verify", "verdicts", correct=bool(reward), reward=reward) for i in (1, 2, 3)]
    plan = publish(tmp_path, *wrong)
    assert [statuses(tmp_path, plan, i)["constant_reward"] for i in (1, 2, 3)] == ["not_measured"] * 2 + ["fail"]


def test_one_different_reward_in_the_window_is_enough(tmp_path: Path) -> None:
    wrong = [changed(i, "verify", "verdicts", correct=False, reward=0.0) for i in (1, 2)]
    plan = publish(tmp_path, healthy(1), *wrong[1:], changed(3, "verify", "verdicts", correct=False, reward=0.0))
    assert statuses(tmp_path, plan, 3)["constant_reward"] == "ok"


def test_where_nothing_was_critiqued_leakage_is_not_measured(tmp_path: Path) -> None:
    made = healthy(1)
    made["critique"]["critiques"], made["refine"]["refinements"] = [], []
    made["verify_refinements"]["verdicts"] = []
    found = statuses(tmp_path, publish(tmp_path, made))
    assert found["answer_leakage"] == found["degraded_critiques"] == "not_measured"


def test_a_critique_that_does_not_state_the_answer_leaks_nothing(tmp_path: Path) -> None:
    made = changed(1, "critique", "critiques", text="It is wrong.")
    made["refine"]["refinements"] = [dataclasses.replace(made["refine"]["refinements"][0], text="4")]
    assert statuses(tmp_path, publish(tmp_path, made))["answer_leakage"] == "not_measured"


def test_a_failed_gate_names_query_value_limit_and_the_next_command(tmp_path: Path) -> None:
    plan = publish(tmp_path, changed(1, "rollout", "responses", policy_version=7))
    with pytest.raises(GateFailed) as caught:
        raise_failed("one", check_iteration(tmp_path, "one", plan, 1))
    assert "gate policy_served failed in iteration 1: 2, must be == 0" in caught.value.message
    assert DECLARED["policy_served"].query in caught.value.message
    assert "cgrpo sql" in caught.value.hint
    assert "--run one" in caught.value.hint
    assert caught.value.hint.endswith("cgrpo resume one --accept policy_served")


def test_what_was_found_is_kept_and_can_be_asked_about(tmp_path: Path) -> None:
    plan = publish(tmp_path, changed(1, "rollout", "responses", finish_reason="length"))
    check_iteration(tmp_path, "one", plan, 1)
    rows = query(tmp_path, "select run, iteration, gate, value, bound from gates where status = 'warn'").rows
    assert rows == [("one", 1, "truncated", 1.0, 0.5)]
    assert query(tmp_path, "select count(*) from gates").rows == [(len(DECLARED),)]


def test_a_failed_gate_stays_failed_until_a_person_accepts_it_by_name(tmp_path: Path) -> None:
    plan = publish(tmp_path, changed(1, "rollout", "responses", policy_version=7))
    for _ in range(2):
        with pytest.raises(GateFailed):
            raise_failed("one", check_iteration(tmp_path, "one", plan, 1))
    assert accept_gates(tmp_path, "one", ["truncated"]) == 0
    with pytest.raises(GateFailed):
        raise_failed("one", check_iteration(tmp_path, "one", plan, 1))
    assert accept_gates(tmp_path, "one", ["policy_served"]) == 1
    raise_failed("one", check_iteration(tmp_path, "one", plan, 1))
    kept = {result.gate: result.accepted for result in read_gates(tmp_path, "one", 1) or []}
    assert [name for name, accepted in kept.items() if accepted] == ["policy_served"]


def test_a_gate_that_gives_no_finite_number_does_not_pass(tmp_path: Path) -> None:
    gate = DECLARED["truncated"].model_copy(update={"query": "select 'nan'::double", "then": "fail"})
    plan = publish(tmp_path, healthy(1), declared={"mine": gate})
    assert statuses(tmp_path, plan) == {"mine": "fail"}
    with pytest.raises(GateFailed, match="no finite number"):
        raise_failed("one", check_iteration(tmp_path, "one", plan, 1))


def test_a_gate_that_is_ignored_is_not_asked(tmp_path: Path) -> None:
    gate = DECLARED["truncated"].model_copy(update={"then": "ignore"})
    assert statuses(tmp_path, publish(tmp_path, healthy(1), declared={"mine": gate})) == {}


def test_a_gate_sees_no_other_iteration_than_those_of_its_window(tmp_path: Path, monkeypatch) -> None:
    gate = DECLARED["truncated"].model_copy(update={"query": "select count(distinct iteration) from responses"})
    declared = {f"over_{k}": gate.model_copy(update={"over": k}) for k in (1, 2)}
    plan = publish(tmp_path, *(healthy(i) for i in (1, 2, 3)), declared=declared)
    opened = []
    real = catalog.open_stages
    monkeypatch.setattr(
        catalog, "open_stages", lambda home, run, seen: real(home, run, opened.append(len(seen)) or seen)
    )
    values = {result.gate: result.value for result in check_iteration(tmp_path, "one", plan, 3)}
    assert values == {"over_1": 1, "over_2": 2}
    assert opened == [9, 17], "the setup and 8 stages an iteration: what is read does not grow with the run"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("select avg(x) from responses", "x"),
        ("select 1; select 2", "one SELECT"),
        ("copy responses to 'x.csv'", "one SELECT"),
        ("select 1, 2", "not one number"),
        ("select count(*) from respnses", "respnses"),
        ("select text from read_text('pipelines.yaml')", "disabled"),
        ("select", "gates.mine.query"),
        ("select 'a'", "not one number"),
    ],
)
def test_a_wrong_query_is_refused_before_anything_has_run(text: str, said: str) -> None:
    gate = DECLARED["truncated"].model_copy(update={"query": text})
    plan = dataclasses.replace(a_plan(), config={"gates": {"mine": gate.model_dump()}})
    with pytest.raises(GateInvalid) as caught:
        check_queries(plan)
    assert said in caught.value.message
    assert "gates.mine" in caught.value.message


def test_the_gates_of_every_profile_are_questions_that_can_be_asked() -> None:
    for profile in (None, "cpu", "1-gpu", "8-gpu"):
        declared = resolve(FILE, "critique-grpo", profile=profile).gates
        check_queries(dataclasses.replace(a_plan(), config={"gates": {k: g.model_dump() for k, g in declared.items()}}))


def test_a_limit_is_set_like_any_parameter() -> None:
    assert resolve(FILE, "critique-grpo", sets=["gates.truncated.limit=0.25"]).gates["truncated"].limit == 0.25
