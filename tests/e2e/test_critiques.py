"""Critiques by models, end to end: a scripted server, the policy itself, and another model that refines."""

import json
import re
from pathlib import Path

import pytest
import yaml
from critique_server import Raw, Say, Status, critique_server

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

KEY = "sk-e2e-secret-31415926535"  # conftest.py puts it into the environment of the cluster
VARIABLE = "CGRPO_TEST_CRITIQUE_KEY"
SMALL = ("run.iterations=1", "critique.max_prompt_tokens=900", "refine.max_prompt_tokens=480")


def endpoint(base_url: str) -> str:
    options = f"model: scripted, base_url: '{base_url}', api_key_env: {VARIABLE}, max_retries: 2, timeout_s: 20"
    return f"engines.critiquer.options={{{options}}}"


def script(body: dict, before: int):
    """First a verdict that contradicts the verifier, then one that agrees; some problems fare otherwise."""
    text = body["messages"][0]["content"]
    problem = re.search(r"Problem:\n(\d) and (\d)", text)
    assert problem
    first = int(problem.group(1))
    if first == 0:
        return Status(429, headers={"Retry-After": "0"}) if before == 0 else Say("It adds wrongly.\nVerdict: wrong")
    if first == 1:
        return Raw(b'{"choices": [{"mess') if before == 0 else Say("It adds wrongly.\nVerdict: wrong")
    if first == 2:
        return Say("I cannot tell <|im_end|>")
    return Say("All is well.\nVerdict: correct" if before == 0 else "It adds wrongly.\nVerdict: wrong")


@pytest.fixture(scope="module")
def asked(lab):
    """A run whose critiques a scripted server wrote in up to two attempts, and its settings."""
    with critique_server(script) as server:
        settings = [*SMALL, "run.seed=61", "refine.gate=all", "critique.attempts=2", "limits.degraded_critiques_max=1"]
        settings.append(endpoint(server.base_url))
        command = ["run", "critique-grpo", "--name", "asked", "--preset", "critique_cot", *lab.settings(*settings)]
        done = lab.call(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return settings, done


def test_each_attempt_is_a_row_and_what_no_attempt_agreed_on_is_said_and_skipped(lab, asked):
    rows = lab.sql("select critique_id, attempt, status, error from critique_attempts order by all", "asked")
    assert {row["status"] for row in rows} >= {"agreed", "disagreed"}
    last = {row["critique_id"]: row["status"] for row in rows}
    critiques = lab.sql("select critique_id, status, degraded, attempts, kind, model from critiques", "asked")
    for row in critiques:
        assert (row["kind"], row["model"]) == ("cot", "scripted")
        assert row["status"] == ("ok" if last[row["critique_id"]] == "agreed" else last[row["critique_id"]])
        assert (row["degraded"] == "skipped") == (row["status"] != "ok")
        assert row["attempts"] <= 2
    refined = lab.sql("select count(distinct critique_id) n from refinements", "asked")[0]["n"]
    skipped = lab.sql("select count(*) n from skipped_refinements where reason = 'no_critique'", "asked")[0]["n"]
    assert refined == sum(row["status"] == "ok" for row in critiques)
    assert skipped == sum(row["status"] != "ok" for row in critiques)


def test_the_table_of_the_iteration_counts_what_degraded(lab, asked):
    artifacts = lab.prefect("artifacts", artifacts={"key": {"any_": ["asked-iteration-1"]}})
    metrics = {row["metric"]: row["value"] for row in json.loads(artifacts[0]["data"])}
    critiques = lab.sql("select status, degraded from critiques", "asked")
    attempts = lab.sql("select count(*) n from critique_attempts", "asked")[0]["n"]
    assert metrics["critiques"] == len(critiques)
    assert metrics["critique_attempts"] == attempts
    assert metrics.get("critiques_degraded", 0) == sum(row["degraded"] is not None for row in critiques)


def test_the_same_settings_in_another_run_ask_nobody_and_give_the_same_rows(lab, asked):
    settings, _ = asked
    # The gate is in the block `refine`, so critiques have other keys under another temperature of refinements.
    offline = [one for one in settings if not one.startswith("engines.critiquer")]
    offline += [endpoint("http://127.0.0.1:9/v1"), "refine.temperature=0.9"]
    command = ["run", "critique-grpo", "--name", "offline", "--preset", "critique_cot", *lab.settings(*offline)]
    done = lab.call(*command)
    assert done.returncode == 0, done.stderr
    same = "select response_id, status, text, attempts, latency_ms from critiques order by all"
    texts = "select text, status, attempt, reply_id, latency_ms from critique_attempts order by all"
    assert lab.sql(same, "asked") == lab.sql(same, "offline")
    assert lab.sql(texts, "asked") == lab.sql(texts, "offline")
    keys = lab.sql("select count(distinct key) n from stages where stage = 'critique'")
    assert keys[0]["n"] >= 2  # critique names the block refine, so the stage ran again
    metrics = lab.sql("select metrics->>'replies_asked' asked from stages where stage = 'critique'", "offline")
    assert [float(row["asked"]) for row in metrics] == [0.0]


def test_what_it_cost_is_told_by_kind_and_model(lab, asked, tmp_path):
    done = lab.call("critique-cost", "asked", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    attempts = lab.sql("select count(*) n, count(distinct reply_id) ids from critique_attempts", "asked")[0]
    assert (row["kind"], row["model"], row["attempts"], row["price"]) == ("cot", "scripted", attempts["n"], None)
    assert "no price for scripted" in done.stderr
    prices = tmp_path / "prices.yaml"
    declaration = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))
    declaration["prices"]["scripted"] = {"prompt_per_million": 1000, "completion_per_million": 2000}
    prices.write_text(yaml.safe_dump(declaration))
    (priced,) = json.loads(lab.call("critique-cost", "asked", "--json", "--file", str(prices)).stdout)
    assert priced["price"] == pytest.approx((row["prompt_tokens"] * 1000 + row["completion_tokens"] * 2000) / 1e6)
    assert row["wrong_to_right"] <= row["refinements"]


def test_the_key_is_nowhere(lab, asked):
    _, done = asked
    assert KEY not in done.stdout + done.stderr
    searched = 0
    for path in lab.home.parent.rglob("*"):  # the home, Prefect's database and log, and the log of the cluster's head
        try:
            if path.is_file():
                assert KEY.encode() not in path.read_bytes(), path
                searched += 1
        except FileNotFoundError:
            continue  # a journal of the database that was there a moment ago
    assert searched > 20
    for kind, page in (("task_runs", {}), ("flow_runs", {}), ("artifacts", {}), ("logs", {})):
        assert KEY not in json.dumps(lab.prefect(kind, **page))


def test_the_policy_criticises_itself_and_each_attempt_is_kept(lab):
    settings = [*SMALL, "run.seed=62", "critique.attempts=2", "critique.max_critique_tokens=8"]
    settings += ["critique.degraded=indicative", "engines.sampler.options.max_model_len=1024"]
    done = lab.call(*("run", "critique-grpo", "--name", "self", "--preset", "critique_self", *lab.settings(*settings)))
    assert done.returncode == 0, done.stdout + done.stderr
    attempts = lab.sql("select model, status, kind, prompt_tokens, completion_tokens from critique_attempts", "self")
    assert attempts
    assert {(row["model"], row["kind"]) for row in attempts} == {("policy", "self")}
    assert all(row["prompt_tokens"] > 100 and 0 < row["completion_tokens"] <= 8 for row in attempts)
    critiques = lab.sql("select kind, status, degraded, with_ground_truth from critiques", "self")
    for row in critiques:
        assert (row["kind"], row["degraded"]) == (("self", None) if row["status"] == "ok" else ("indicative",) * 2)
        assert row["with_ground_truth"] == (row["status"] == "ok")
    served = lab.sql("select stage, metrics from stages where stage = 'critique'", "self")
    assert json.loads(served[0]["metrics"])["completion_tokens"] > 0
    assert lab.sql("select count(*) n from refinements", "self")[0]["n"] == len(critiques)


def test_another_model_writes_the_refinements_and_they_say_so(lab):
    model = next(one for one in lab.sets if one.startswith("inputs.base_model")).replace("base_model", "helper_model")
    settings = ["run.iterations=2", "run.seed=63", model, "engines.helper.options.kv_cache_gib=0.1"]
    done = lab.call(
        *("run", "critique-grpo", "--name", "helped", "--preset", "weak_to_strong", *lab.settings(*settings))
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = lab.sql("select distinct iteration, model, policy_version from refinements order by all", "helped")
    assert rows == [{"iteration": k, "model": "helper", "policy_version": 0} for k in (1, 2)]
    responses = lab.sql("select distinct iteration, policy_version from responses order by all", "helped")
    assert [row["policy_version"] for row in responses] == [0, 1]
    assert {name.partition("-")[0] for name in lab.call("engines").stdout.split()} >= {"sampler", "helper"}
    lab.call("engines", "--stop")  # a helper, and a sampler with more room, that the tests to come do not use
