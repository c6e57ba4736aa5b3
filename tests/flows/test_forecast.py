"""What a plan says of itself: what runs and why, how long it should take, and whether its engines fit."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_runs import FILE, fork_of, make_run, plan_of, publish, publish_all, rerun_of

from cgrpo_core.memory import ModelShape, kv_bytes_per_token, sampler_memory, trainer_memory
from flows import cli
from flows.expected import expect, observe, prompts_of
from flows.fit import keep_estimate, kept_estimate, measured_peaks, shortages
from flows.forecast import forecast, grouped_rows, totals
from flows.reasons import NEW, REBUILT, UNPUBLISHED, decide, nearest_plan
from storage.policies import drop, publish_directory
from tasks.machine import available_memory
from tasks.versions import STAGE_VERSIONS

PARENT = plan_of()


def whys(plan, published=(), reference=None, **more) -> dict[str, str]:
    return {d.stage.label: f"{d.action}: {d.why}" for d in decide(plan, published, reference, **more)}


def test_every_reason_has_its_words(monkeypatch) -> None:
    keys = {stage.key for stage in PARENT.stages if (stage.iteration or 0) < 2}
    assert set(whys(PARENT).values()) == {f"run: {NEW}"}
    again = whys(PARENT, keys, PARENT)
    assert again["rollout 1.0"] == "reuse: "
    assert again["rollout 2.0"] == f"run: {UNPUBLISHED}"
    gamma = whys(fork_of(PARENT, 1, "loss.shaping.gamma=0.3"), keys, PARENT)
    assert gamma["update 2"] == "run: loss.shaping.gamma: 0.1 -> 0.3"
    assert gamma["evaluate 2"] == "run: input policy changed"
    salted = whys(rerun_of(PARENT, "critique", iteration=2), keys, PARENT)
    assert salted["critique 2.0"] == "run: salt: '' -> 'salt'"
    monkeypatch.setitem(STAGE_VERSIONS, "tasks.select:select_refinements", 99)
    raised = whys(plan_of(), keys, PARENT)
    assert raised["select 1.0"] == f"run: version: {PARENT.stages[10].ingredients['stage_version']} -> 99"


def test_dropped_weights_are_said_where_a_stage_that_runs_reads_the_policy() -> None:
    update = next(stage.key for stage in PARENT.stages if stage.stage == "update")
    keys = {stage.key for stage in PARENT.stages if (stage.iteration or 0) < 2}
    assert whys(PARENT, keys, PARENT, without_weights={update})["update 1"] == f"reuse: {REBUILT}"
    every = {stage.key for stage in PARENT.stages}
    assert whys(PARENT, every, PARENT, without_weights={update})["update 1"] == "reuse: "


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_after_any_prefix_of_the_work_the_plan_is_the_rest_of_the_work(data: st.DataObject) -> None:
    """A prefix: whatever stages are done, those that they read are done too."""
    done: set[str] = set()
    for stage in PARENT.stages:
        inputs = {ref.key for refs in stage.inputs.values() for ref in refs}
        if inputs <= done and data.draw(st.booleans()):
            done.add(stage.key)
    to_run = [decision.stage.key for decision in decide(PARENT, done, PARENT) if decision.action == "run"]
    assert to_run == [stage.key for stage in PARENT.stages if stage.key not in done]


CHOICES = {
    "run.seed": ["17", "18"],
    "rollout.temperature": ["1.0", "0.8"],
    "critique.kind": ["indicative", "indicative_gt"],
    "select.keep": ["1", "2"],
    "loss.shaping.gamma": ["0.1", "0.3"],
    "engines.trainer.options.dtype": ["float32", "bfloat16"],
}
chosen = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})


@settings(max_examples=25, deadline=None)
@given(chosen, chosen)
def test_the_same_settings_give_the_same_keys_and_any_other_setting_another_policy(one, other) -> None:
    first, second = (plan_of(*(f"{name}={value}" for name, value in sets.items())) for sets in (one, other))
    keys = [next(s.key for s in plan.stages if s.stage == "update") for plan in (first, second)]
    assert (keys[0] == keys[1]) == (one == other)
    shared = {s.key for s in first.stages} & {s.key for s in second.stages}
    for stage in second.stages:  # what is shared was made of what is shared
        if stage.key in shared:
            assert {ref.key for refs in stage.inputs.values() for ref in refs} <= shared


def test_the_run_to_compare_with_is_the_one_that_shares_most() -> None:
    near, far = plan_of("loss.shaping.gamma=0.3"), plan_of("run.seed=5")
    assert nearest_plan(PARENT, [("far", far), ("near", near)]) == ("near", near)
    assert nearest_plan(PARENT, []) is None


def test_time_and_tokens_are_those_of_stages_with_the_same_settings_before_others(tmp_path: Path) -> None:
    make_run(tmp_path, "hot", plan_of("rollout.temperature=0.5"))
    make_run(tmp_path, "run", PARENT)
    stage = next(one for one in PARENT.stages if one.stage == "rollout")
    other = next(one for one in plan_of("rollout.temperature=0.5").stages if one.stage == "rollout")
    publish(tmp_path, other, metrics={"completion_tokens": 10.0}, ended_at=120.0)
    larger = plan_of("run.prompts_per_iteration=8")
    wanted = next(one for one in larger.stages if one.stage == "rollout")
    found = expect(wanted, larger, observe(tmp_path, {stage.task})[stage.task])
    assert (found.basis, found.tokens, found.seconds) == ("other settings", 40.0, 80.0)
    publish(tmp_path, stage, metrics={"completion_tokens": 100.0}, ended_at=102.0)
    found = expect(wanted, larger, observe(tmp_path, {stage.task})[stage.task])
    assert (found.basis, found.tokens, found.seconds, found.observations) == ("same settings", 400.0, 8.0, 1)
    assert expect(wanted, larger, []).basis == "none"
    model = plan_of("inputs.base_model={kind: path, path: other}")
    wanted = next(one for one in model.stages if one.stage == "rollout")
    found = expect(wanted, model, observe(tmp_path, {stage.task})[stage.task])
    assert (found.basis, found.seconds) == ("none", None), "another model says nothing"


def test_prompts_are_divided_among_the_chunks_as_the_schedule_divides_them() -> None:
    plan = plan_of("run.prompts_per_iteration=7", "run.chunks=3")
    chunks = [prompts_of(s, plan) for s in plan.stages if s.stage == "rollout" and s.iteration == 1]
    assert (chunks, sum(chunks)) == ([2, 2, 3], 7)
    assert prompts_of(next(s for s in plan.stages if s.stage == "update"), plan) == 7
    assert prompts_of(next(s for s in plan.stages if s.stage == "evaluate_base"), plan) == 1


def test_a_long_plan_is_summed_up_by_stage(tmp_path: Path) -> None:
    plan = plan_of("run.iterations=300", "run.prompts_per_iteration=8", profile="8-gpu")
    publish_all(tmp_path, plan, "load_problems")
    found = forecast(tmp_path, plan)
    rows = {row["stage"]: row for row in grouped_rows(found)}
    assert len(rows) == 15
    assert (rows["rollout"]["run"], rows["rollout"]["why"]) == (1200, NEW)
    assert (rows["load_problems"]["run"], rows["load_problems"]["reuse"]) == (0, 1)
    assert totals(found)["reuse"] == 1


SHAPE = ModelShape(parameters=1000, layers=2, hidden=8, intermediate=16, kv_heads=2, head_dim=4, vocabulary=100)


def test_the_memory_of_a_trainer_worked_by_hand() -> None:
    options = {"world_size": 2, "micro_batch_tokens": 10, "chunk_tokens": 4, "gradient_checkpointing": False}
    whole = trainer_memory(SHAPE, dtype="float32", zero_stage=0, **options)
    assert (whole["weights"], whole["gradients"], whole["optimizer"]) == (4000, 4000, 8000)
    assert whole["activations"] == 10 * 2 * (8 * 8 + 2 * 2 * 4 + 4 * 16) * 4
    assert whole["logits"] == 4 * 100 * 4 * 3
    split = trainer_memory(SHAPE, dtype="bfloat16", zero_stage=3, **options)
    assert (split["weights"], split["gradients"], split["optimizer"]) == (1000, 1000, 4000 + 2000)
    second = trainer_memory(SHAPE, dtype="bfloat16", zero_stage=2, **options)
    assert (second["weights"], second["gradients"]) == (2000, 1000)
    checkpointed = trainer_memory(SHAPE, dtype="float32", zero_stage=0, **{**options, "gradient_checkpointing": True})
    assert checkpointed["activations"] == 10 * (2 * 8 * 4 + (8 * 8 + 2 * 2 * 4 + 4 * 16) * 4)


def test_the_memory_of_a_sampler_worked_by_hand() -> None:
    assert kv_bytes_per_token(SHAPE, "bfloat16") == 2 * 2 * 2 * 4 * 2
    parts = sampler_memory(SHAPE, dtype="bfloat16", kv_cache_bytes=500, max_num_seqs=3, on_cpu=False)
    assert (parts["weights"], parts["weights_loading"], parts["kv_cache"]) == (2000, 0, 500)
    assert parts["logits"] == 3 * 100 * 4 * 3


def engine(size: float, gpus: float = 0, replicas: int = 1, share: float = 0) -> dict[str, object]:
    return {"bytes": int(size * 2**30), "gpus": gpus, "replicas": replicas, "share": share}


@pytest.mark.parametrize(
    ("engines", "memory", "gpus", "short"),
    [
        ([engine(3), engine(4)], 8, [], []),
        ([engine(3), engine(2, replicas=3)], 8, [], ["memory: 9.0 GiB of 8.0 GiB"]),
        ([engine(30, 0.5, share=0.3), engine(60, 0.5)], 8, [80], ["memory of a GPU: 90.0 GiB of 80.0 GiB"]),
        ([engine(3, 0.5, share=0.35), engine(40, 0.5)], 8, [80], []),
        ([engine(3, 0.5, share=0.9), engine(40, 0.5)], 8, [80], ["memory of a GPU: 112.0 GiB of 80.0 GiB"]),
        ([engine(30, 1, replicas=4), engine(60, 1, replicas=4)], 8, [80] * 8, []),
        ([engine(30, 1, replicas=4)], 8, [80], ["GPUs: 4 of 1"]),
        ([{"gpus": 0, "replicas": 1}, engine(4)], 8, [], None),
        ([{"gpus": 0, "replicas": 1}, engine(9)], 8, [], ["memory: 9.0 GiB of 8.0 GiB"]),
    ],
)
def test_engines_share_memory_and_a_gpu_and_what_is_short_is_named(engines, memory, gpus, short) -> None:
    available = {"memory": memory * 2**30, "gpus": [size * 2**30 for size in gpus]}
    assert shortages({str(number): one for number, one in enumerate(engines)}, available) == short


def test_what_is_there_is_bounded_by_the_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1000\nactive_file 500\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 11500
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 50 * 1024
    assert available_memory(tmp_path / "none") is None


def test_the_estimate_is_kept_with_the_run_and_compared_with_the_largest_measured_peak(tmp_path: Path) -> None:
    make_run(tmp_path, "run", PARENT)
    assert kept_estimate(tmp_path, "run") is None
    keep_estimate(tmp_path, "run", {"engines": {}})
    assert kept_estimate(tmp_path, "run") == {"engines": {}}
    for stage, peak in zip((s for s in PARENT.stages if s.stage == "rollout"), (300.0, 200.0), strict=True):
        publish(tmp_path, stage, metrics={"peak_rss_bytes": peak})
    assert measured_peaks(tmp_path, PARENT.stages) == {"sampler": 300}


def test_a_policy_without_weights_and_checkpoint_is_to_be_rebuilt(tmp_path: Path) -> None:
    publish_all(tmp_path, PARENT, iteration=1)
    update = next(stage.key for stage in PARENT.stages if stage.stage == "update")
    publish_directory(tmp_path, "weights", update, lambda path: (path / "model").write_bytes(b"w") and None)
    assert REBUILT not in {decision.why for decision in forecast(tmp_path, PARENT).decisions}
    drop(tmp_path, f"weights/{update}")
    assert [d.stage.label for d in forecast(tmp_path, PARENT).decisions if d.why == REBUILT] == ["update 1"]


def test_cgrpo_plan_says_why_in_json_too(tmp_path: Path, monkeypatch, capsys) -> None:
    home = tmp_path / "home"
    make_run(home, "before", plan_of())
    monkeypatch.setenv("CGRPO_HOME", str(home))
    monkeypatch.chdir(FILE.parent)
    monkeypatch.setattr("sys.argv", ["cgrpo", "plan", "critique-grpo", "--set", "run.iterations=1", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["compared_with"] == "before"
    assert {row["action"] for row in told["stages"]} == {"run"}
    assert set(told["memory"]["engines"]) == {"sampler", "trainer"}
