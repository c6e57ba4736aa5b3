"""An evaluation is planned as a run of its own: keys, shards, what is shared, and what a user may get wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cgrpo_core.errors import UserError
from cgrpo_core.records import Policy
from flows.evaluation_plan import EVALUATE, SUMMARISE, Subject, comparison, compile_evaluation, policy_stages
from flows.evaluation_run import find_policy, new_evaluation, resolve_evaluation
from flows.plan import compile_plan
from flows.resolve import read_declaration, resolve
from storage.artifacts import Manifest, Store
from storage.plans import Plan, StagePlan
from storage.runs import create_run, list_runs, read_plan, run_state

FILE = Path(__file__).parents[2] / "pipelines.yaml"
CATALOGUE = read_declaration(FILE)[0].benchmarks


def parent(*sets: str) -> Plan:
    spec = resolve(FILE, "critique-grpo", profile="cpu", sets=["run.iterations=3", *sets])
    return compile_plan(spec, {name: {"digest": name} for name in spec.inputs})


PARENT = parent()


def evaluation(*sets: str, version: int = 2, names: tuple[str, ...] = ("math500", "aime24"), of: Plan = PARENT) -> Plan:
    spec = resolve_evaluation(FILE, of, profile=None, sets=sets)
    leaves = {name: {"kind": "benchmark", "name": name, "identity": {"digest": name}} for name in names}
    return compile_evaluation(spec, Subject("run", of, policy_stages(of)[version]), leaves)


def keys(plan: Plan) -> dict[tuple[str, int | None], str]:
    return {(stage.stage, stage.chunk): stage.key for stage in plan.stages}


def changed(*sets: str) -> set[str]:
    before, after = keys(evaluation()), keys(evaluation(*sets))
    return {place[0] for place in before if before[place] != after.get(place)}


def test_the_policy_of_the_run_comes_first_then_each_benchmark_by_shards() -> None:
    plan = evaluation()
    assert plan.stages[0] == next(one for one in PARENT.stages if (one.stage, one.iteration) == ("update", 2))
    names = [stage.stage for stage in plan.stages[1:]]
    assert names[:6] == ["load_math500", *["evaluate_math500"] * 4, "summarise_math500"]
    assert names[6:] == [
        *("load_aime24", "evaluate_aime24", "summarise_aime24"),
        *("evaluate_aime24_sampled", "summarise_aime24_sampled"),
    ]
    assert [stage.chunk for stage in plan.stages if stage.stage == "evaluate_math500"] == [0, 1, 2, 3]
    assert {stage.iteration for stage in plan.stages} == {2}
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_greedy_answers_and_samples_are_asked_as_declared() -> None:
    blocks = {one.stage: one.params["evaluate"] for one in evaluation().stages if one.task == EVALUATE}
    greedy, sampled = blocks["evaluate_aime24"], blocks["evaluate_aime24_sampled"]
    assert (greedy["temperature"], greedy["samples_per_problem"]) == (0.0, 1)
    assert (sampled["temperature"], sampled["top_p"], sampled["samples_per_problem"]) == (0.6, 0.95, 32)
    assert greedy["template"] == sampled["template"] == "number"  # as the run trains on this profile
    assert (greedy["max_response_tokens"], greedy["benchmark"]) == (40, "aime24")


def test_the_samples_of_the_command_hold_for_every_benchmark() -> None:
    assert not [one for one in evaluation("pass_at_k.samples=0").stages if one.stage.endswith("_sampled")]
    sampled = [one for one in evaluation("pass_at_k.samples=8").stages if one.stage.endswith("_sampled")]
    assert {one.params["evaluate"]["samples_per_problem"] for one in sampled} == {8}
    assert {one.params["evaluate"]["benchmark"] for one in sampled} == {"math500", "aime24"}


def test_another_policy_reads_the_same_problems() -> None:
    one, two = keys(evaluation(version=1)), keys(evaluation(version=2))
    assert {place[0] for place in one if one[place] == two.get(place)} == {"load_math500", "load_aime24"}


def test_a_setting_changes_the_stages_that_it_is_of() -> None:
    asked = {"evaluate_math500", "summarise_math500", "evaluate_aime24", "summarise_aime24"}
    assert changed("pass_at_k.temperature=1.0") == {"evaluate_aime24_sampled", "summarise_aime24_sampled"}
    assert asked <= changed("evaluate.max_response_tokens=50")
    assert changed("benchmarks.math500.template=boxed") == {"evaluate_math500", "summarise_math500"}
    assert "evaluate_math500" in changed("engines.sampler.options.dtype=bfloat16")
    for setting in (
        "benchmarks.math500.note=x",
        "verify.workers=2",
        "engines.sampler.replicas=2",
        "rollout.group_size=3",
    ):
        assert changed(setting) == set()


def test_policies_compare_when_they_were_asked_in_the_same_way() -> None:
    def asked(plan: Plan) -> list[str]:
        return [comparison(plan, stage) for stage in plan.stages if stage.task == SUMMARISE]

    assert asked(evaluation(version=1)) == asked(evaluation(version=3))
    assert len(set(asked(evaluation()))) == 3
    assert not set(asked(evaluation())) & set(asked(evaluation("evaluate.max_response_tokens=50")))


def test_the_configuration_is_the_runs_own_and_a_profile_is_laid_over_it() -> None:
    of = parent("rollout.template=boxed", "verify.timeout_s=2.0")
    spec = resolve_evaluation(FILE, of, profile=None, sets=[])
    assert (spec.params.rollout.template, spec.params.verify.timeout_s) == ("boxed", 2.0)
    assert spec.params.evaluate.max_response_tokens == 40
    gpu = resolve_evaluation(FILE, of, profile="1-gpu", sets=["evaluate.max_response_tokens=6144"])
    assert gpu.engines["sampler"].resources["num_gpus"] == 0.5
    assert (gpu.params.rollout.template, gpu.params.evaluate.max_response_tokens) == ("boxed", 6144)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("benchmarks.math500.verifier=math_verfy", "math_verfy"),
        ("benchmarks.math500.templat=boxed", "templat"),
        ("evaluate.shards=4", "benchmarks.NAME"),
        ("inputs.problems={kind: jsonl, path: x}", "those of its run"),
        ("pass_at_k.temperature=0", "above 0"),
        ("pass_at_k.samples=2000", "at most 1000"),
        ("evaluate.samples_per_problem=4", "temperature 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluation(setting)
    assert caught.value.hint


def test_training_cannot_be_told_to_evaluate_a_shard() -> None:
    with pytest.raises(UserError, match=r"benchmarks\.NAME"):
        resolve(FILE, "critique-grpo", profile="cpu", sets=["evaluate.shards=2"])


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_benchmark_of_the_catalogue_is_declared_in_full(name: str) -> None:
    benchmark = CATALOGUE[name]
    assert benchmark.title
    assert benchmark.licence
    assert benchmark.size
    assert benchmark.hub is not None
    assert re.fullmatch(r"[0-9a-f]{40}", str(benchmark.hub.revision))
    assert evaluation(names=(name,)).stages[-1].task == SUMMARISE


def test_the_catalogue_has_the_benchmarks_of_the_paper() -> None:
    paper = {"math500", "aime24", "amc23", "minerva", "olympiadbench", "theoremqa", "gpqa_diamond", "mmlu_pro"}
    assert paper | {"aime25", "gsm8k"} == set(CATALOGUE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the run `subject`, whose policies 0 and 1 are published, and a file of problems."""
    create_run(tmp_path, name="subject", plan=PARENT, options={})
    for version in (0, 1):
        publish_policy(tmp_path, policy_stages(PARENT)[version], version)
    rows = [{"problem": f"{k}?", "answer": k, "data_source": "math" if k else "amc"} for k in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def publish_policy(home: Path, stage: StagePlan, version: int) -> None:
    times = {"started_at": 100.0, "ended_at": 101.0}
    place = {"stage_version": 1, "iteration": stage.iteration, "chunk": None}
    manifest = Manifest(key=stage.key, stage=stage.stage, task=stage.task, **place, **times)
    policy = Policy(policy_version=version, parent=None, weights_sha256="00", weights=None, checkpoint=None)
    tables: dict[str, Any] = {"policy": (Policy, [policy])}
    Store(home).publish(manifest, tables)


def ask(home: Path, policy: str = "subject", *sets: str, benchmarks: str = "math500", file: Path = FILE) -> Any:
    more = [f"benchmarks.math500.path={home / 'rows.jsonl'}", *sets]
    return new_evaluation(home, policy, [benchmarks], samples=2, profile=None, sets=more, file=file)


def test_an_evaluation_is_a_run_with_a_parent_and_the_same_call_finds_it(home: Path) -> None:
    run = ask(home, "subject@0")
    assert (run.pipeline, run.parent) == ("evaluate", "subject")
    assert run.name.startswith("subject-eval-0-")
    assert ask(home, "subject@0") == run
    assert ask(home, "subject@1").name != run.name
    assert len(list_runs(home)) == 3
    state = run_state(home, run.name)
    assert (state.state, state.policy_version, state.stages_published) == ("new", 0, 1)
    leaf = read_plan(home, run.name).stages[1].leaves["source"]
    assert leaf["source"] == {"kind": "jsonl", "path": str(home / "rows.jsonl")}


def test_without_a_version_the_newest_published_policy_is_meant(home: Path) -> None:
    assert find_policy(home, "subject").policy_version == 1


@pytest.mark.parametrize(
    ("policy", "benchmarks", "sets", "said", "hint"),
    [
        ("subjet", "math500", (), "no run subjet", "subject"),
        ("subject@3", "math500", (), "no policy '3'", "subject@1"),
        ("subject@x", "math500", (), "no policy 'x'", "0, 1"),
        ("subject", "math50", (), "no benchmark 'math50'", "math500"),
        ("subject", ",", (), "no benchmark is named", "gsm8k"),
        ("subject", "math500", ("benchmarks.math500.path=no.jsonl",), "no.jsonl", ""),
        ("subject", "math500", ("benchmarks.math500.path=rows.txt",), "rows.txt", ".jsonl"),
        ("subject", "gsm8k", ("benchmarks.gsm8k.hub.revision=main",), "not a commit", "40 hex"),
        ("subject", "gsm8k", ("benchmarks.gsm8k.hub.revision=null",), "pins no revision", "benchmarks.gsm8k.path"),
        ("subject", "mine", ("benchmarks.mine={title: mine, licence: own}",), "has no file", "benchmarks.mine.path"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(
    home: Path, policy: str, benchmarks: str, sets, said: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        ask(home, policy, *sets, benchmarks=benchmarks)
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert [run.name for run in list_runs(home)] == ["subject"]


def test_an_evaluation_cannot_be_evaluated(home: Path) -> None:
    run = ask(home)
    with pytest.raises(UserError, match="is an evaluation"):
        ask(home, run.name)


def test_a_run_without_a_policy_says_so(tmp_path: Path) -> None:
    create_run(tmp_path, name="empty", plan=PARENT, options={})
    with pytest.raises(UserError, match="no policy yet"):
        find_policy(tmp_path, "empty")
