"""What a user does with a trained policy: evaluate it on benchmarks, be cut off, ask again, compare policies."""

import json
import shutil
import signal
import time
from collections import defaultdict
from statistics import fmean

import pytest

from cgrpo_core.metrics import pass_at_k
from storage.artifacts import Store
from storage.runs import read_plan

pytestmark = pytest.mark.e2e
PATIENCE_S = 240
SAMPLES = 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    """Settings that put small files, one with rows that are no problems, in the place of two benchmarks."""
    directory = tmp_path_factory.mktemp("benchmarks")
    sums = [{"question": f"{a} and {b}?", "answer": f"so\n#### {(a + b) % 4 + 1}"} for a in range(4) for b in range(5)]
    choices = [{"question": f"{k} or not {k}?", "options": ["yes", "no", str(k)], "answer": "A"} for k in range(6)]
    broken = [{"question": "and?", "options": ["yes", "no"], "answer": "J"}, {"question": "", "options": 7}, "text", {}]
    for name, rows in (("sums", sums), ("choices", [*choices, *broken])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [
        f"benchmarks.gsm8k.path={directory / 'sums.jsonl'}",
        "benchmarks.gsm8k.shards=3",
        f"benchmarks.mmlu_pro.path={directory / 'choices.jsonl'}",
        "benchmarks.mmlu_pro.shards=2",
        "benchmarks.mmlu_pro.template=letter",
    ]
    return [word for setting in sets for word in ("--set", setting)]


@pytest.fixture(scope="module")
def trained(lab):
    lab.train("subject", "run.seed=41")
    return lab


def evaluate(lab, policy: str, settings: list[str], benchmarks: str = "gsm8k,mmlu_pro", samples: int = SAMPLES):
    words = ["evaluate", "--policy", policy, "--benchmarks", benchmarks, "--samples", str(samples), *settings, "--json"]
    done = lab.call(*words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def published_at(lab, name: str) -> dict[tuple[str, int | None], float]:
    store = Store(lab.home)
    stages = read_plan(lab.home, name).stages
    return {(one.stage, one.chunk): found.started_at for one in stages if (found := store.find(one.key))}


@pytest.fixture(scope="module")
def first(trained, settings):
    """Policy 1, whose weights are gone and come back by replay."""
    update = next(
        stage.key
        for stage in read_plan(trained.home, "subject").stages
        if (stage.stage, stage.iteration) == ("update", 1)
    )
    shutil.rmtree(trained.home / "weights" / update)
    return evaluate(trained, "subject@1", settings)


def test_the_figures_follow_from_the_stored_answers(trained, first):
    shown, _ = first
    assert shown["policy_version"] == 1
    rows = trained.sql(
        "select problem_id, sample_index, correct, status, temperature from evaluations where benchmark = 'gsm8k'",
        shown["run"],
    )
    assert len(rows) == 20 * (1 + SAMPLES)
    by_problem = defaultdict(list)
    for row in rows:
        if row["temperature"] > 0:
            by_problem[row["problem_id"]].append(row["correct"])
    figures = {
        (one["metric"], one["temperature"]): one["value"] for one in shown["figures"] if one["benchmark"] == "gsm8k"
    }
    for k in (1, 2, 4):
        expected = fmean(pass_at_k(SAMPLES, sum(correct), k) for correct in by_problem.values())
        assert figures[f"pass@{k}", 0.6] == pytest.approx(expected)
    assert figures["avg@4", 0.6] == pytest.approx(figures["pass@1", 0.6]) == pytest.approx(figures["maj@1", 0.6])
    assert figures["pass@1", 0] == pytest.approx(fmean(row["correct"] for row in rows if row["temperature"] == 0))
    assert 0 < figures["pass@4", 0.6] < 1
    stored = trained.sql("select count(*) n from benchmark_figures", shown["run"])
    assert stored == [{"n": len(shown["figures"])}]


def test_rows_that_are_no_problem_are_rejected_with_a_reason(trained, first):
    shown, _ = first
    rows = trained.sql("select line, reason from rejected_rows order by line", shown["run"])
    assert [row["line"] for row in rows] == [7, 8, 9, 10]
    assert all(row["reason"] for row in rows)
    asked = trained.sql(
        "select count(distinct problem_id) n, min(template) prompt from evaluations where benchmark = 'mmlu_pro'",
        shown["run"],
    )
    assert asked == [{"n": 6, "prompt": "letter"}]


def test_a_second_call_computes_nothing(trained, first, settings):
    shown, _ = first
    before = published_at(trained, shown["run"])
    attempts = sorted((trained.home / "runs" / shown["run"] / "attempts").iterdir())
    again, said = evaluate(trained, "subject@1", settings)
    assert again == shown
    assert "nothing is computed" in said
    assert published_at(trained, shown["run"]) == before
    assert sorted((trained.home / "runs" / shown["run"] / "attempts").iterdir()) == attempts


def test_a_later_policy_is_shown_beside_the_earlier_one_and_drawn(trained, first, settings):
    shown, said = evaluate(trained, "subject", settings, samples=0)
    assert shown["policy_version"] == 2
    greedy = {one["policy_version"] for one in shown["figures"] if one["metric"] == "pass@1"}
    assert greedy == {1, 2}
    assert {one["temperature"] for one in shown["figures"]} == {0}
    plot = trained.home / "plots" / f"{shown['run']}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert str(plot) in said
    state = trained.status(shown["run"])
    assert (state["state"], state["weights_sha256"]) == ("completed", trained.status("subject")["weights_sha256"])


def test_a_killed_evaluation_goes_on_from_its_published_shards(trained, first, settings):
    sets = [*settings, "--set", "benchmarks.gsm8k.shards=8", "--set", "verify.timeout_s=4.0"]
    words = ["evaluate", "--policy", "subject@2", "--benchmarks", "gsm8k", "--samples", "16", *sets]
    runs = trained.home / "runs"
    known = set(runs.iterdir())
    process = trained.start(*words)
    deadline = time.monotonic() + PATIENCE_S

    def shards() -> dict[tuple[str, int | None], float]:
        new = [path for path in runs.iterdir() if path not in known and (path / "plan.json").exists()]
        return (
            {place: at for place, at in published_at(trained, new[0].name).items() if place[1] is not None}
            if new
            else {}
        )

    while not shards():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = [path.name for path in set(runs.iterdir()) - known]
    before = published_at(trained, run)
    assert trained.status(run)["state"] == "crashed"
    resumed = trained.call("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert "gsm8k" in resumed.stdout
    after = published_at(trained, run)
    assert {place: after[place] for place in before} == before
    assert len([place for place in after if place[0] == "evaluate_gsm8k_sampled"]) == 8
    rows = trained.sql(
        "select count(*) n, count(distinct (problem_id, sample_index, temperature)) d from evaluations", run
    )
    assert rows == [{"n": 20 * 17, "d": 20 * 17}]
