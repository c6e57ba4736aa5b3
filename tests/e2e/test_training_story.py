"""What a user does first: train, ask in SQL, see that chunks overlap, resume, train again on the same cluster."""

import json

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def trained(lab):
    output = lab.train("story", "run.chunks=2", "run.seed=19")
    return lab, output


def test_a_run_completes_and_says_what_to_type_next(trained):
    lab, output = trained
    state = lab.status("story")
    assert state["state"] == "completed"
    assert (state["iteration"], state["policy_version"]) == (2, 2)
    assert len(str(state["weights_sha256"])) == 64
    for command in ("cgrpo sql", "cgrpo ui", "cgrpo resume story"):
        assert command in output.stderr


def test_every_response_has_its_verdict_and_every_row_its_tokens(trained):
    lab, _ = trained
    counts = lab.sql(
        "select r.iteration, count(*) responses, count(distinct response_id) ids, count(v.subject_id) judged, "
        "bool_and(len(token_ids) = len(sampling_logprobs)) whole from responses r "
        "left join verdicts v on v.subject_id = r.response_id and v.run = r.run group by all order by all",
        "story",
    )
    assert counts == [{"iteration": k, "responses": 18, "ids": 18, "judged": 18, "whole": True} for k in (1, 2)]


def test_refinements_exist_exactly_where_no_response_was_correct(trained):
    lab, _ = trained
    rows = lab.sql(
        "select r.group_id, bool_or(v.correct) solved, count(f.refinement_id) refinements from responses r "
        "join verdicts v on v.subject_id = r.response_id left join refinements f on f.response_id = r.response_id "
        "group by all",
        "story",
    )
    assert {row["solved"] for row in rows} == {True, False}
    assert all((row["refinements"] == 0) == row["solved"] for row in rows)


def test_a_refinement_is_trained_as_a_continuation_of_the_question_alone(trained):
    lab, _ = trained
    rows = lab.sql(
        "select t.prompt_token_ids = p.token_ids of_question, t.prompt_token_ids = f.prompt_token_ids of_critique, "
        "t.token_ids = f.token_ids same_tokens "
        "from training_samples t join refinements f on f.refinement_id = t.sample_id "
        "join prompts p on p.prompt_id = t.group_id where t.origin = 'refinement'",
        "story",
    )
    assert rows
    assert all(row == {"of_question": True, "of_critique": False, "same_tokens": True} for row in rows)


def test_advantages_are_rewards_less_the_mean_of_their_group(trained):
    lab, _ = trained
    worst = lab.sql(
        "select max(abs(advantage - (reward - mean))) worst from (select advantage, reward, "
        "avg(reward) over (partition by group_id) mean from training_samples)",
        "story",
    )
    assert worst[0]["worst"] < 1e-12


def test_sampler_and_trainer_agree_about_the_same_tokens_and_the_weights_change(trained):
    lab, _ = trained
    updates = lab.sql("select iteration, status, logprob_gap_max, grad_norm from updates order by iteration", "story")
    assert [row["status"] for row in updates] == ["ok", "ok"]
    assert all(row["logprob_gap_max"] < 1e-4 for row in updates)
    assert all(row["grad_norm"] > 0 for row in updates)
    digests = lab.sql("select count(distinct weights_sha256) n from policies", "story")
    assert digests[0]["n"] == 3


def test_policy_0_and_the_last_policy_are_evaluated_problem_by_problem(trained):
    lab, _ = trained
    rows = lab.sql(
        "select policy_version, count(distinct problem_id) n from evaluations group by all order by all", "story"
    )
    assert rows == [{"policy_version": 0, "n": 8}, {"policy_version": 2, "n": 8}]


def test_the_prefect_ui_shows_the_paper_s_steps_by_run_iteration_stage_and_chunk(trained):
    lab, _ = trained
    flows = {row["name"] for row in lab.prefect("flow_runs", flow_runs={"name": {"like_": "story"}})}
    assert {"critique-grpo story", "story iteration 0", "story iteration 1", "story iteration 2"} <= flows
    tasks = lab.prefect("task_runs", flow_runs={"name": {"any_": ["story iteration 2"]}})
    names = {row["name"] for row in tasks}
    assert {
        "story rollout 2.0",
        "story rollout 2.1",
        "story critique 2.0",
        "story update 2",
        "story evaluate 2",
    } <= names
    assert {row["state_name"] for row in tasks} == {"Completed"}
    artifacts = lab.prefect("artifacts", artifacts={"key": {"any_": ["story-iteration-2"]}})
    metrics = {row["metric"]: row["value"] for row in json.loads(artifacts[0]["data"])}
    assert metrics["rollout_responses"] == 18
    assert metrics["status"] == "ok"


def test_resuming_a_finished_run_runs_nothing_and_keeps_the_weights(trained):
    lab, _ = trained
    before = lab.status("story")
    again = lab.call("resume", "story")
    assert again.returncode == 0, again.stderr
    assert lab.status("story")["weights_sha256"] == before["weights_sha256"]


def test_the_same_run_in_one_chunk_shares_no_stage_but_gives_the_same_policy_0(trained):
    lab, _ = trained
    planned = lab.call("plan", "critique-grpo", *lab.settings("run.chunks=2", "run.seed=19"), "--json")
    assert planned.returncode == 0
    assert '"action": "run"' not in planned.stdout
    other = lab.call("plan", "critique-grpo", *lab.settings("run.chunks=1", "run.seed=19"))
    assert "4 to reuse" in other.stderr


def test_a_run_of_the_baseline_has_no_critiques_and_takes_the_engines_that_are_there(trained):
    lab, output = trained
    assert "cgrpo engines --stop" in output.stderr
    engines = lab.call("engines").stdout
    assert {name.partition("-")[0] for name in engines.split()} == {"sampler", "trainer"}
    before = lab.engine_processes("Sampler") | lab.engine_processes("Trainer")
    assert len(before) >= 2
    lab.train("baseline", "run.iterations=1", pipeline="grpo")
    rows = lab.sql("select origin, count(*) n from training_samples group by all", "baseline")
    assert [row["origin"] for row in rows] == ["response"]
    assert lab.sql("select count(*) n from critiques", "baseline") == [{"n": 0}]
    assert lab.call("engines").stdout == engines
    assert lab.engine_processes("Sampler") | lab.engine_processes("Trainer") == before
