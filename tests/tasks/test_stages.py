"""Stage bodies on records made by hand: the gate, one baseline over the union, what is left out and counted."""

from dataclasses import replace

import pytest
from stage_calls import call, problem, prompt, refinement, response, verdict

from cgrpo_core.errors import UserError
from cgrpo_core.params import (
    AdvantageParams,
    CritiqueParams,
    LimitParams,
    RefineParams,
    RolloutParams,
    SelectParams,
    VerifyParams,
)
from cgrpo_core.records import SelectedRefinement, Solution

CRITIQUE = "tasks.critique:write_critiques"
ADVANTAGE = "tasks.advantage:build_training_samples"


def critiques(tmp_path, rewards: dict[str, dict[str, float | None]], gate: str = "zero_correct"):
    responses = [response(name, group) for group, members in rewards.items() for name in members]
    verdicts = [verdict(name, reward) for members in rewards.values() for name, reward in members.items()]
    return call(
        CRITIQUE,
        tmp_path,
        CritiqueParams(kind="indicative_gt"),
        RefineParams(gate=gate),
        LimitParams(),
        responses=responses,
        verdicts=verdicts,
        problems=[problem()],
        policy=[],
        model={},
    )


def test_only_groups_without_a_correct_response_are_critiqued(tmp_path):
    done = critiques(tmp_path, {"solved": {"a": 1.0, "b": 0.0}, "unsolved": {"c": 0.0, "d": 0.0}})
    assert {row.response_id for row in done.tables["critiques"]} == {"c", "d"}
    assert all("4" in row.text for row in done.tables["critiques"])
    assert (done.counts["groups"], done.counts["groups_refined"]) == (2, 1)


def test_the_gate_all_refines_every_response_and_never_none(tmp_path):
    rewards = {"solved": {"a": 1.0, "b": 0.0}}
    assert len(critiques(tmp_path, rewards, "all").tables["critiques"]) == 2
    assert critiques(tmp_path, rewards, "never").tables["critiques"] == []


def test_right_responses_can_be_left_without_a_critique(tmp_path):
    done = call(
        CRITIQUE,
        tmp_path,
        CritiqueParams(responses="wrong"),
        RefineParams(gate="all"),
        responses=[response("a"), response("b")],
        verdicts=[verdict("a", 1.0), verdict("b", 0.0)],
        problems=[problem()],
        policy=[],
        model={},
    )
    assert [row.response_id for row in done.tables["critiques"]] == ["b"]


def test_a_response_without_a_verdict_gets_no_critique_and_is_counted(tmp_path):
    done = critiques(tmp_path, {"g": {"a": None, "b": 0.0}})
    assert [row.response_id for row in done.tables["critiques"]] == ["b"]
    assert done.counts["without_verdict"] == 1


def advantages(tmp_path, rewards: dict[str, float | None], refined: dict[str, float] | None = None, **select):
    refined = refined or {}
    return call(
        ADVANTAGE,
        tmp_path,
        AdvantageParams(),
        SelectParams(**select),
        prompts=[prompt()],
        responses=[response(name) for name in rewards],
        verdicts=[verdict(name, reward) for name, reward in rewards.items()],
        refinements=[refinement(name, next(iter(rewards))) for name in refined],
        refinement_verdicts=[verdict(name, reward) for name, reward in refined.items()],
        selection=[SelectedRefinement(group_id="g", refinement_id=name, reason="correct") for name in refined],
    )


def test_the_paper_s_group_of_seven_wrong_responses_and_a_right_refinement(tmp_path):
    done = advantages(tmp_path, {f"r{k}": 0.0 for k in range(7)}, {"f": 1.0})
    rows = {row.sample_id: row for row in done.tables["samples"]}
    assert rows["f"].advantage == pytest.approx(0.875)
    assert rows["f"].prompt_token_ids == (1, 2)
    assert (rows["f"].origin, rows["f"].weight) == ("refinement", 1.0)
    assert all(rows[f"r{k}"].advantage == pytest.approx(-0.125) for k in range(7))
    assert all(rows[f"r{k}"].weight == pytest.approx(1 / 7) for k in range(7))


def test_a_response_the_verifier_could_not_judge_is_left_out_of_the_baseline_and_counted(tmp_path):
    done = advantages(tmp_path, {"a": 1.0, "b": None, "c": 0.0})
    assert {row.sample_id: row.advantage for row in done.tables["samples"]} == {"a": 0.5, "c": -0.5}
    assert done.counts["without_verdict"] == 1


def test_equal_rewards_give_no_gradient_and_the_group_is_counted(tmp_path):
    done = advantages(tmp_path, {"a": 0.0, "b": 0.0})
    assert [row.advantage for row in done.tables["samples"]] == [0.0, 0.0]
    assert done.counts["groups_without_gradient"] == 1


def test_a_group_of_equal_rewards_can_be_dropped_and_is_counted(tmp_path):
    kept = call_advantage(tmp_path, AdvantageParams(equal_rewards="drop"), {"g": {"a": 1.0, "b": 0.0, "c": None}})
    assert [row.sample_id for row in kept.tables["samples"]] == ["a", "b"]
    dropped = call_advantage(tmp_path, AdvantageParams(equal_rewards="drop"), {"g": {"a": 0.0, "b": 0.0, "c": None}})
    assert dropped.tables["samples"] == []
    assert (dropped.counts["groups"], dropped.counts["groups_dropped"]) == (1, 1)


def test_a_penalty_for_length_enters_the_advantage_and_leaves_the_reward(tmp_path):
    """Two tokens of a limit of 4, the last 3 of which are the buffer: a third of the penalty."""
    params = AdvantageParams(overlong_share=0.75, overlong_penalty=0.6)
    responses = [response("a"), replace(response("b"), token_ids=(5,), sampling_logprobs=(-0.5,))]
    done = call_advantage(
        tmp_path, params, {"g": {"a": 1.0, "b": 0.0}}, RolloutParams(max_response_tokens=4), responses=responses
    )
    rows = {row.sample_id: row for row in done.tables["samples"]}
    assert {name: row.reward for name, row in rows.items()} == {"a": 1.0, "b": 0.0}
    assert [row.penalty for row in rows.values()] == pytest.approx([-0.2, 0.0])
    assert rows["a"].advantage == pytest.approx(0.8 - 0.4)
    assert done.counts["penalised"] == 1


def test_a_worked_solution_joins_its_group_with_reward_1_and_no_sampling_logprobs(tmp_path):
    solution = Solution(solution_id="s", group_id="g", problem_id="q", token_ids=(8, 9, 10), cut=False)
    rewards = {"g": {f"r{k}": 0.0 for k in range(7)}}
    done = call_advantage(tmp_path, AdvantageParams(weights="one_sum"), rewards, solutions=[solution])
    row = done.tables["samples"][-1]
    assert (row.origin, row.reward, row.weight) == ("solution", 1.0, 0.125)
    assert (row.prompt_token_ids, row.token_ids, row.sampling_logprobs) == ((1, 2), (8, 9, 10), ())
    assert row.advantage == pytest.approx(0.875)


def call_advantage(tmp_path, params, rewards, *blocks, **more):
    given = {
        "prompts": [prompt(group) for group in rewards],
        "responses": [response(name, group) for group, members in rewards.items() for name in members],
        "verdicts": [verdict(name, reward) for members in rewards.values() for name, reward in members.items()],
    }
    return call(ADVANTAGE, tmp_path, params, SelectParams(), *blocks, **(given | more))


def test_replace_wrong_never_replaces_a_correct_response(tmp_path):
    done = advantages(tmp_path, {"a": 1.0, "b": 0.0}, {"f": 1.0}, placement="replace_wrong")
    assert [row.sample_id for row in done.tables["samples"]] == ["a", "f"]


def test_an_answer_that_hangs_the_verifier_costs_its_own_timeout_and_is_no_reward_of_0(tmp_path):
    responses = [
        response("hangs", text="$9^{9^{9^{9^{9}}}}$"),
        response("right", text="4"),
        response("wrong", text="5"),
    ]
    done = call(
        "tasks.verify:verify_responses",
        tmp_path,
        VerifyParams(timeout_s=1.0),
        responses=responses,
        problems=[problem()],
    )
    found = {row.subject_id: (row.status, row.reward) for row in done.tables["verdicts"]}
    assert found == {"hangs": ("timeout", None), "right": ("ok", 1.0), "wrong": ("ok", 0.0)}
    assert done.counts["status_timeout"] == 1


def test_a_stage_that_reads_a_block_it_does_not_declare_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not declare"):
        call(CRITIQUE, tmp_path, CritiqueParams(), responses=[], verdicts=[], problems=[], policy=[], model={})
