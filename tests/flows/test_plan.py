"""The plan: a pure value with lineage keys."""

import itertools
from pathlib import Path

import pytest

from cgrpo_core.errors import UserError
from flows.plan import compile_plan, used_inputs
from flows.resolve import presets_for, read_declaration, resolve
from storage.plans import Plan

FILE = Path(__file__).parents[2] / "pipelines.yaml"
DECLARATION, _ = read_declaration(FILE)


def plan(
    *sets: str, pipeline: str = "critique-grpo", profile: str | None = "cpu", leaves: dict[str, str] | None = None
) -> Plan:
    spec = resolve(FILE, pipeline, profile=profile, sets=list(sets))
    return compile_plan(spec, {name: {"digest": (leaves or {}).get(name, name)} for name in spec.inputs})


def keys(value: Plan) -> dict[tuple[str, int | None, int | None], str]:
    return {(stage.stage, stage.iteration, stage.chunk): stage.key for stage in value.stages}


@pytest.mark.parametrize(
    ("pipeline", "preset", "profile"),
    [
        (pipeline, preset, profile)
        for pipeline, profile in itertools.product(DECLARATION.pipelines, DECLARATION.profiles)
        for preset in presets_for(pipeline, DECLARATION)
    ],
)
def test_every_pipeline_preset_and_profile_makes_a_plan(pipeline: str, preset: str, profile: str) -> None:
    spec = resolve(FILE, pipeline, profile=profile, presets=[preset], sets=["run.iterations=2"])
    made = compile_plan(spec, {name: {"digest": name} for name in spec.inputs})
    stages = [stage.stage for stage in made.stages if stage.iteration == 2]
    assert stages[-3:] == ["update", "checkpoint", "evaluate"]
    assert stages.count("prompts") == spec.params.run.chunks
    assert len({stage.key for stage in made.stages}) == len(made.stages)


@pytest.mark.parametrize("pipeline", DECLARATION.pipelines)
def test_every_pipeline_has_a_preset_of_its_own_as_default(pipeline: str) -> None:
    assert DECLARATION.pipelines[pipeline].preset in presets_for(pipeline, DECLARATION)


def test_no_two_presets_of_a_pipeline_mean_the_same() -> None:
    for pipeline in DECLARATION.pipelines:
        seen: dict[str, str] = {}
        for preset in presets_for(pipeline, DECLARATION):
            spec = resolve(FILE, pipeline, presets=[preset])
            meaning = f"{spec.params} {[stage.engine for stage in spec.graph.explore.values()]}"
            assert meaning not in seen, f"{preset} is {seen[meaning]}"
            seen[meaning] = preset


def test_a_preset_of_another_pipeline_is_refused_with_those_that_are_its_own() -> None:
    with pytest.raises(UserError, match="'gspo' is for the pipeline grpo, not critique-grpo") as caught:
        resolve(FILE, "critique-grpo", presets=["gspo"])
    assert "official_intended" in caught.value.hint
    assert "gspo" not in caught.value.hint


def test_the_same_declaration_gives_the_same_keys() -> None:
    assert keys(plan()) == keys(plan())


def test_a_plan_survives_json() -> None:
    made = plan("run.chunks=2")
    assert Plan.from_json(made.to_json()) == made


def test_an_input_stands_before_whoever_reads_it() -> None:
    seen: set[str] = set()
    for stage in plan("run.chunks=3").stages:
        assert {ref.key for refs in stage.inputs.values() for ref in refs} <= seen
        seen.add(stage.key)


def test_a_longer_run_begins_with_the_stages_of_a_shorter_one() -> None:
    short, long = keys(plan("run.iterations=3")), keys(plan("run.iterations=5"))
    assert {place: long[place] for place in short if place in long} == {p: k for p, k in short.items() if p in long}
    assert set(short) - set(long) == {("evaluate", 3, None)} or set(short) <= set(long)


def changed(*sets: str) -> set[str]:
    before, after = keys(plan("run.iterations=1")), keys(plan("run.iterations=1", *sets))
    return {place[0] for place in before if before[place] != after.get(place)}


def test_a_parameter_changes_the_stages_that_name_it_and_what_follows() -> None:
    assert changed("loss.shaping.gamma=0.3") == {"update", "checkpoint", "evaluate"}
    assert changed("select.keep=2") == {"select", "advantage", "update", "checkpoint", "evaluate"}
    assert "rollout" not in changed("critique.kind=indicative")
    assert {"critique", "refine"} <= changed("critique.kind=indicative")


def test_placement_and_schedules_change_no_key() -> None:
    for setting in ("engines.sampler.replicas=2", "verify.workers=2", "checkpoint.keep=1", "limits.logprob_gap_max=1"):
        assert changed(setting) == set()


def test_the_dtype_of_an_engine_is_part_of_the_key() -> None:
    assert "rollout" in changed("engines.sampler.options.dtype=bfloat16")


def test_other_problems_change_everything_that_is_sampled() -> None:
    before, after = keys(plan()), keys(plan(leaves={"problems": "others"}))
    same = {place[0] for place in before if before[place] == after[place]}
    assert same == {"load_eval_problems", "init_policy", "evaluate_base"}


def test_evaluations_are_planned_for_policy_0_every_k_and_the_last() -> None:
    stages = plan("run.iterations=7", "evaluate.every=3").stages
    assert [stage.iteration for stage in stages if stage.stage.startswith("evaluate")] == [None, 3, 6, 7]


def test_rows_of_several_stages_come_one_after_the_other() -> None:
    (advantage,) = [stage for stage in plan("run.iterations=1", pipeline="dapo").stages if stage.stage == "advantage"]
    assert len(advantage.inputs["prompts"]) == 3
    assert len({ref.key for ref in advantage.inputs["responses"]}) == 3


def test_a_graph_that_replaces_prompts_needs_as_many_slots_as_it_asks() -> None:
    for pipeline, slots in (("dapo", 2), ("grpo", 3)):
        with pytest.raises(UserError, match="slots_per_prompt"):
            plan(f"run.slots_per_prompt={slots}", pipeline=pipeline)


def test_more_chunks_than_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="chunks"):
        plan("run.chunks=9")


def test_only_inputs_that_some_stage_reads_are_identified() -> None:
    spec = resolve(FILE, "critique-grpo", profile="cpu")
    assert used_inputs(spec) == {"base_model", "problems", "eval_problems"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "prompts: prompts.prompts, policy: carry.policy}",
            "prompts: promts.prompts, policy: carry.policy}",
            "promts.prompts",
        ),
        ('"tasks.rollout:sample_responses"', '"tasks.rollout:sample_response"', "sample_response"),
        ("out: {responses: Response}", "out: {responses: Respons}", "Respons"),
        ("engine: sampler", "engine: samplr", "samplr"),
        ("every: evaluate.every", "every: evaluate.evry", "evaluate.evry"),
        ("params: [critique, refine, limits]", "params: [critiqe, refine, limits]", "critiqe"),
    ],
)
def test_a_name_that_leads_nowhere_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "pipelines.yaml"
    text = FILE.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    spec = resolve(path, "critique-grpo", profile="cpu")
    with pytest.raises(UserError, match=message) as caught:
        compile_plan(spec, {name: {"digest": name} for name in spec.inputs})
    assert caught.value.hint
