"""Successors and supervised baselines, two iterations each, with real stages and engines that pretend.

What reaches the trainer is what the graph and the preset mean, and the audit's rules of lineage hold of it.
"""

import json

import pytest
from fake_run import ROOT, SETS, fake_engines, fake_inputs, run_stage

from cgrpo_core.lineage import sample_faults
from cgrpo_core.records import Prompt, Refinement, Response, TrainingSample
from flows.leaves import make_plan
from storage.artifacts import Store

MORE = (
    *("run.prompts_per_iteration=8", "rollout.group_size=4"),  # some refinement is right, whatever is drawn
    *("critique.max_prompt_tokens=2000", "refine.max_prompt_tokens=2000"),  # a token is a byte here
    "engines.sampler.options.max_model_len=4096",
)
ARMS = {
    "rltf": ("critique-grpo", {"response", "refinement"}),
    "icrl": ("critique-grpo", {"response", "refinement"}),
    "golf": ("critique-grpo", {"response", "refinement"}),
    "r3l": ("critique-grpo", {"response", "refinement"}),
    "sdpo": ("sdpo", {"response"}),
    "sft": ("sft", {"solution"}),
    "raft": ("raft", {"response"}),
    "refinement_ft": ("refinement-ft", {"refinement"}),
    "citl_ft": ("refinement-ft", {"response", "refinement"}),
    "critique_ft": ("critique-ft", {"critique"}),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return a function from preset to (store, plan) of a run under it."""
    directory = tmp_path_factory.mktemp("inputs")
    solved = [{"problem": f"{a} and {b}?", "answer": str((a + b) % 4 + 1)} for a in range(4) for b in range(2)]
    solved = [row | {"solution": f"It is {row['answer']}."} for row in solved]
    (directory / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solved))
    settings = [*fake_inputs(directory), f"inputs.problems={{kind: jsonl, path: {directory / 'solved.jsonl'}}}"]
    home = tmp_path_factory.mktemp("home")

    def run(preset: str):
        plan = make_plan(
            ROOT / "pipelines.yaml", ARMS[preset][0], profile="cpu", presets=[preset], sets=[*SETS, *MORE, *settings]
        )
        store = Store(home)
        for stage in plan.stages:
            if store.find(stage.key) is None:
                run_stage(home, stage, plan.config["base_dir"])
        return store, plan

    with pytest.MonkeyPatch.context() as patch:
        fake_engines(patch)
        yield run


def rows(store, plan, record: type):
    return [
        row
        for stage in plan.stages
        for output, name in stage.outputs.items()
        if name == record.__name__
        for row in store.read(stage.key, output, record)
    ]


@pytest.mark.parametrize("preset", ARMS)
def test_what_is_trained_is_what_the_preset_means_and_what_was_sampled(ran, preset) -> None:
    store, plan = ran(preset)
    samples = rows(store, plan, TrainingSample)
    assert {sample.origin for sample in samples} == ARMS[preset][1]
    stored = [rows(store, plan, record) for record in (Prompt, Response, Refinement)]
    assert sample_faults(samples, *stored) == []
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert any(sample.advantage for sample in samples)


def test_only_correct_completions_are_imitated_and_rltf_keeps_wrong_ones(ran) -> None:
    for preset in ("raft", "refinement_ft", "citl_ft"):
        assert {sample.reward for sample in rows(*ran(preset), TrainingSample)} == {1.0}
    assert {sample.reward for sample in rows(*ran("rltf"), TrainingSample)} == {0.0, 1.0}


def test_refinements_and_distilled_responses_carry_the_prompt_that_shows_the_critique(ran) -> None:
    for preset, origin in (("icrl", "refinement"), ("sdpo", "response")):
        chosen = [sample for sample in rows(*ran(preset), TrainingSample) if sample.origin == origin]
        assert chosen
        assert all(len(sample.context_token_ids) > len(sample.prompt_token_ids) for sample in chosen)


def test_golf_refines_a_group_once_and_lets_it_take_a_wrong_place(ran) -> None:
    store, plan = ran("golf")
    refinements = rows(store, plan, Refinement)
    assert len({row.group_id for row in refinements}) == len(refinements) > 0
    groups: dict[str, list[str]] = {}
    for sample in rows(store, plan, TrainingSample):
        groups.setdefault(sample.group_id, []).append(sample.origin)
    assert {len(members) for members in groups.values()} == {4}
