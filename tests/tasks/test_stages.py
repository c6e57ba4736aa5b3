"""Stage bodies on records made by hand: the gate, one baseline over the union, what is left out and counted."""

import pytest
from stage_calls import call, problem, prompt, refinement, response, verdict

from cgrpo_core.errors import UserError
from cgrpo_core.params import AdvantageParams, CritiqueParams, RefineParams, SelectParams, VerifyParams
from cgrpo_core.records import SelectedRefinement

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
        responses=responses,
        verdicts=verdicts,
        problems=[problem()],
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
        call(CRITIQUE, tmp_path, CritiqueParams(), responses=[], verdicts=[], problems=[])
