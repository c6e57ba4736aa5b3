"""Faults that a run meets: no gradient, truncation, disagreeing engines, empty data, servers that do not answer."""

import json

import pytest

pytestmark = pytest.mark.e2e


def problems(tmp_path, rows: list[dict[str, object]]) -> str:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"inputs.problems={{kind: jsonl, path: {path}}}"


def test_an_iteration_of_equal_rewards_is_said_and_skipped(lab, tmp_path):
    never = problems(tmp_path, [{"problem": f"{k} and {k}?", "answer": "99"} for k in range(6)])
    done = lab.train("no-gradient", never, "run.iterations=1", "rollout.max_response_tokens=1")
    update = lab.sql("select status, samples_trained, loss, grad_norm, logprob_gap_max from updates", "no-gradient")[0]
    assert (update["status"], update["samples_trained"], update["grad_norm"]) == ("no_gradient", 0, None)
    assert update["logprob_gap_max"] < 1e-4
    assert lab.sql("select count(distinct weights_sha256) n from policies", "no-gradient") == [{"n": 1}]
    assert "no_gradient" in done.stdout
    truncated = lab.sql(
        "select sum(cast(counts->>'truncated' as int)) n from stages where stage = 'rollout'", "no-gradient"
    )
    lengths = lab.sql("select count(*) n from responses where finish_reason = 'length'", "no-gradient")
    assert truncated == lengths
    assert lengths[0]["n"] > 0


def test_rows_without_question_or_answer_are_kept_out_with_line_and_reason(lab, tmp_path):
    rows = [{"problem": f"{k} and 1?", "answer": "2"} for k in range(6)]
    rows[1:1] = [{"problem": "", "answer": "2"}, {"problem": "no answer?"}]
    lab.train("rejected", problems(tmp_path, rows), "run.iterations=1")
    found = lab.sql("select line, reason from rejected_rows order by line", "rejected")
    assert [row["line"] for row in found] == [2, 3]
    assert lab.sql("select count(*) n from problems where stage = 'load_problems'", "rejected") == [{"n": 6}]


def test_engines_that_disagree_beyond_the_limit_fail_the_run_and_say_so(lab):
    settings = lab.settings("run.iterations=1", "run.seed=37", "limits.logprob_gap_max=1e-12")
    done = lab.call("run", "critique-grpo", "--name", "gap", *settings)
    assert done.returncode == 1
    assert "log-prob" in done.stderr
    assert "cgrpo resume gap" in done.stderr
    assert "Traceback" not in done.stderr
    assert lab.status("gap")["state"] == "failed"


def test_an_empty_data_set_fails_with_its_path(lab, tmp_path):
    done = lab.call("run", "critique-grpo", "--name", "empty", *lab.settings(problems(tmp_path, [])))
    assert done.returncode == 1
    assert "problems.jsonl" in done.stderr
    assert "cgrpo resume empty" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "RAY_ADDRESS"])
def test_a_server_that_does_not_answer_is_named(lab, variable):
    address = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "RAY_ADDRESS": "127.0.0.1:9"}
    name = f"no-{variable.lower().replace('_', '-')}"
    settings = lab.settings("run.seed=59")  # a seed of its own: a run that is published whole needs no Ray
    done = lab.call("run", "critique-grpo", "--name", name, *settings, **{variable: address[variable]})
    assert done.returncode == 1
    assert address[variable] in done.stderr
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
