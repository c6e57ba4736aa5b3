"""Plans that go on from another run: what they share with it, what is new, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_runs import as_frozen, make_run

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from flows.derive import place
from flows.fork import fork
from flows.history import plan_fork, plan_rerun
from flows.plan import compile_plan
from flows.rerun import Rerun, rerun
from flows.resolve import read_declaration, resolve, respecify
from storage.keys import stage_key
from storage.plans import Plan, StagePlan

FILE = Path(__file__).parents[2] / "pipelines.yaml"
DECLARATION, _ = read_declaration(FILE)
SETS = ("run.iterations=4", "run.chunks=2", "evaluate.every=2")


def identities(spec) -> dict[str, dict[str, str]]:
    return {name: {"digest": digest(leaf.model_dump())} for name, leaf in spec.inputs.items()}


def plan(*sets: str, pipeline: str = "critique-grpo", profile: str = "cpu", presets: tuple[str, ...] = ()) -> Plan:
    spec = resolve(FILE, pipeline, profile=profile, presets=presets, sets=[*SETS, *sets])
    return as_frozen(compile_plan(spec, identities(spec)))


def forked(parent: Plan, at: int, *sets: str) -> Plan:
    spec = respecify(parent.config, sets)
    return fork(parent, spec, identities(spec), at)


def rerun_of(
    parent: Plan,
    stage: str,
    *sets: str,
    iteration: int | None = None,
    to: str | None = None,
    salt: str = "salt",
    reseed: int | None = None,
) -> Plan:
    spec = respecify(parent.config, sets)
    what = Rerun(stage=stage, iteration=iteration, to=to, salt=salt, reseed=reseed)
    return rerun(parent, spec, identities(spec), what)


def keys(value: Plan) -> set[str]:
    return {stage.key for stage in value.stages}


def new_stages(value: Plan, parent: Plan) -> list[StagePlan]:
    return [stage for stage in value.stages if stage.key not in keys(parent)]


def new_names(value: Plan, parent: Plan, iteration: int) -> set[str]:
    return {stage.stage for stage in new_stages(value, parent) if stage.iteration == iteration}


PARENT = plan()
AFTER_CRITIQUE = {"critique", "refine", "verify_refinements", "select", "advantage", "update", "checkpoint"}


@pytest.mark.parametrize("pipeline", list(DECLARATION.pipelines))
@pytest.mark.parametrize("profile", list(DECLARATION.profiles))
def test_the_settings_of_a_frozen_run_compile_to_the_same_plan(pipeline: str, profile: str) -> None:
    made = plan(pipeline=pipeline, profile=profile)
    spec = respecify(made.config)
    assert as_frozen(compile_plan(spec, identities(spec))) == made


def test_a_fork_shares_every_stage_before_its_iteration() -> None:
    made = forked(PARENT, 2, "loss.shaping.gamma=0.3")
    before = [stage for stage in PARENT.stages if (stage.iteration or 0) <= 2]
    assert list(made.stages[: len(before)]) == before
    assert new_names(made, PARENT, 3) == {"update", "checkpoint"}
    assert new_names(made, PARENT, 4) == {stage.stage for stage in PARENT.stages if stage.iteration == 4} - {"prompts"}
    update = next(stage for stage in made.stages if place(stage) == ("update", 3, None))
    assert update.params["loss"]["shaping"]["gamma"] == 0.3


def test_a_fork_with_nothing_changed_is_its_parent() -> None:
    for at in range(4):
        assert forked(PARENT, at).stages == PARENT.stages


def test_a_fork_can_go_on_for_longer_with_other_chunks_and_another_seed() -> None:
    made = forked(PARENT, 3, "run.iterations=6", "run.chunks=1", "run.seed=99")
    assert max(stage.iteration or 0 for stage in made.stages) == 6
    assert [stage.chunk for stage in made.stages if stage.stage == "rollout"] == [0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert {stage.ingredients["seed"] for stage in made.stages if (stage.iteration or 0) > 3} == {99}
    assert [stage for stage in made.stages if stage.section == "setup"] == [
        stage for stage in PARENT.stages if stage.section == "setup"
    ]
    rollout = next(stage for stage in made.stages if place(stage) == ("rollout", 4, 0))
    update = next(stage for stage in PARENT.stages if place(stage) == ("update", 3, None))
    assert rollout.inputs["policy"][0].key == update.key


def test_a_fork_over_other_problems_loads_them_and_evaluates_policy_0_no_second_time() -> None:
    made = forked(PARENT, 1, "inputs.problems={kind: jsonl, path: others.jsonl}", "evaluate.temperature=0.5")
    setup = [stage.stage for stage in made.stages if stage.section == "setup"]
    assert sorted(setup) == ["evaluate_base", "init_policy", "load_eval_problems", "load_problems", "load_problems"]
    assert new_names(made, PARENT, 2) >= {"prompts", "rollout"}
    again = forked(made, 3)
    assert again.stages == made.stages


def test_a_rerun_shares_everything_before_its_stage() -> None:
    made = rerun_of(PARENT, "critique", "critique.kind=indicative")
    assert new_names(made, PARENT, 1) == AFTER_CRITIQUE
    assert new_names(made, PARENT, 3) == AFTER_CRITIQUE | {"rollout", "verify"}
    assert {place(stage) for stage in made.stages} == {place(stage) for stage in PARENT.stages}
    critique = next(stage for stage in made.stages if stage.stage == "critique")
    assert critique.ingredients["salt"] == "", "the setting alone makes its key new, and others may share it"


def test_a_rerun_without_other_settings_is_salted_and_keeps_its_seeds() -> None:
    made = rerun_of(PARENT, "rollout", iteration=3)
    assert new_names(made, PARENT, 2) == set()
    salted = [stage for stage in made.stages if stage.ingredients["salt"]]
    assert [place(stage) for stage in salted] == [("rollout", 3, 0), ("rollout", 3, 1)]
    assert {stage.ingredients["seed"] for stage in made.stages} == {17}
    assert rerun_of(PARENT, "rollout", iteration=3, salt="other").stages != made.stages


def test_a_reseeded_rerun_samples_anew_and_keeps_the_order_of_the_problems() -> None:
    made = rerun_of(PARENT, "rollout", iteration=2, reseed=5)
    assert {s.ingredients["seed"] for s in made.stages if s.stage == "rollout" and (s.iteration or 0) >= 2} == {5}
    assert {s.ingredients["salt"] for s in made.stages} == {""}
    prompts = [stage.key for stage in made.stages if stage.stage == "prompts"]
    assert prompts == [stage.key for stage in PARENT.stages if stage.stage == "prompts"]
    assert forked(made, 3).stages == made.stages, "what goes on from it keeps its seeds and salts"


def test_a_rerun_to_a_stage_learns_nothing_and_stands_on_the_policies_of_its_parent() -> None:
    made = rerun_of(PARENT, "critique", "critique.kind=indicative", to="select")
    for iteration in range(1, 5):
        names = {stage.stage for stage in made.stages if stage.iteration == iteration}
        assert names == {"prompts", "rollout", "verify", "critique", "refine", "verify_refinements", "select"}
        assert new_names(made, PARENT, iteration) == {"critique", "refine", "verify_refinements", "select"}


def test_a_rerun_to_a_stage_in_one_iteration_ends_there() -> None:
    made = rerun_of(PARENT, "critique", iteration=2, to="refine")
    assert max(stage.iteration or 0 for stage in made.stages) == 2
    assert {stage.stage for stage in new_stages(made, PARENT)} == {"critique", "refine"}
    assert {stage.stage for stage in made.stages if stage.iteration == 1} >= {"update", "critique"}


def test_a_run_that_learnt_nothing_cannot_be_forked_but_done_again_in_full() -> None:
    early = as_frozen(rerun_of(PARENT, "critique", to="select"))
    with pytest.raises(UserError, match="iteration 2 of the run makes no policy"):
        forked(early, 2)
    whole = rerun_of(early, "critique", "critique.kind=indicative")
    assert {place(stage) for stage in whole.stages} == {place(stage) for stage in PARENT.stages}


def test_a_rerun_of_an_evaluation_touches_evaluations_alone() -> None:
    made = rerun_of(PARENT, "evaluate", "evaluate.temperature=0.7", "evaluate.samples_per_problem=4")
    assert {place(stage) for stage in new_stages(made, PARENT)} == {("evaluate", 2, None), ("evaluate", 4, None)}
    once = rerun_of(PARENT, "evaluate", iteration=4)
    assert [place(stage) for stage in new_stages(once, PARENT)] == [("evaluate", 4, None)]


def test_a_rerun_of_the_setup_does_all_that_follows_again() -> None:
    made = rerun_of(PARENT, "load_eval_problems")
    assert {stage.stage for stage in new_stages(made, PARENT)} == {"load_eval_problems", "evaluate_base", "evaluate"}
    assert "load_eval_problems" not in {stage.stage for stage in new_stages(rerun_of(PARENT, "init_policy"), PARENT)}


@pytest.mark.parametrize(
    ("arguments", "sets", "said", "hint"),
    [
        ({"stage": "critiqe"}, (), "no such stage", "critique"),
        ({"stage": "critique", "to": "selct"}, (), "no such stage", "select"),
        ({"stage": "critique", "to": "rollout"}, (), "does not depend on critique", "refine"),
        ({"stage": "evaluate", "iteration": 3}, (), "no evaluate in iteration 3", "2, 4"),
        ({"stage": "rollout", "iteration": 9}, (), "no rollout in iteration 9", "1 to 4"),
        ({"stage": "critique"}, ("rollout.temperature=0.5",), "read by prompts 1.0", "--from prompts"),
        ({"stage": "prompts"}, ("inputs.problems={kind: jsonl, path: x}",), "load_problems", "--from load_problems"),
        ({"stage": "update"}, ("engines.sampler.options.dtype=bfloat16",), "rollout", "--from rollout"),
    ],
)
def test_a_rerun_that_makes_no_sense_is_refused_with_the_reason(arguments, sets, said, hint) -> None:
    with pytest.raises(UserError, match=said) as caught:
        rerun_of(PARENT, arguments.pop("stage"), *sets, **arguments)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("at", "sets", "said"), [(9, (), "no iteration 9"), (3, ("run.iterations=3",), "nothing to do"), (4, (), "nothing")]
)
def test_a_fork_that_makes_no_sense_is_refused_with_the_reason(at, sets, said) -> None:
    with pytest.raises(UserError, match=said) as caught:
        forked(PARENT, at, *sets)
    assert caught.value.hint


def of_an_older_program(made: Plan, block: str, name: str) -> Plan:
    """The plan as a program made it that did not have this parameter yet."""
    config = json.loads(json.dumps(made.config))
    del config["params"][block][name]
    keys_now: dict[str, str] = {}
    stages = []
    for stage in made.stages:
        ingredients = json.loads(json.dumps(stage.ingredients))
        ingredients["params"].get(block, {}).pop(name, None)
        for refs in ingredients["inputs"].values():
            refs[:] = [
                f"{keys_now.get(key, key)}{slash}{output}" for key, slash, output in (r.partition("/") for r in refs)
            ]
        inputs = {
            argument: tuple(replace(ref, key=keys_now[ref.key]) for ref in refs)
            for argument, refs in stage.inputs.items()
        }
        keys_now[stage.key] = stage_key(ingredients)
        stages.append(replace(stage, ingredients=ingredients, inputs=inputs, key=keys_now[stage.key]))
    return replace(made, config=config, stages=tuple(stages))


def test_a_parameter_that_is_new_in_the_program_was_not_asked_for() -> None:
    old = of_an_older_program(PARENT, "rollout", "top_p")
    assert not keys(old) & {stage.key for stage in PARENT.stages if stage.stage == "rollout"}
    made = rerun_of(old, "critique", "critique.kind=indicative")
    assert new_names(made, old, 1) == AFTER_CRITIQUE
    with pytest.raises(UserError, match=r"rollout\.top_p"):
        rerun_of(old, "critique", "rollout.top_p=0.9")


stages_of_parent = st.sampled_from(sorted({stage.stage for stage in PARENT.stages}))


@settings(max_examples=40, deadline=None)
@given(stage=stages_of_parent, data=st.data())
def test_exactly_a_stage_and_its_descendants_get_new_keys(stage: str, data: st.DataObject) -> None:
    iterations = sorted({s.iteration for s in PARENT.stages if s.stage == stage and s.iteration is not None})
    iteration = data.draw(st.sampled_from([None, *iterations]))
    made = rerun_of(PARENT, stage, iteration=iteration)
    again: set[str] = set()
    for one in PARENT.stages:  # by the parent's own edges: what depends on the stage
        named = one.stage == stage and iteration in (None, one.iteration)
        if named or {ref.key for refs in one.inputs.values() for ref in refs} & again:
            again.add(one.key)
    expected = {place(one) for one in PARENT.stages if one.key in again}
    assert {place(one) for one in new_stages(made, PARENT)} == expected
    assert {place(one) for one in made.stages} == {place(one) for one in PARENT.stages}


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 3), gamma=st.sampled_from([0.1, 0.3]), first=st.integers(1, 3))
def test_forks_of_forks_and_reruns_read_only_what_their_plan_or_parents_hold(at: int, gamma: float, first: int) -> None:
    parent = rerun_of(PARENT, "refine", iteration=first, salt="a")
    made = forked(parent, at, f"loss.shaping.gamma={gamma}")
    seen: set[str] = set()
    for stage in made.stages:
        assert {ref.key for refs in stage.inputs.values() for ref in refs} <= seen
        seen.add(stage.key)
    assert len(seen) == len(made.stages)


def test_a_fork_that_takes_the_problems_up_elsewhere_says_so(tmp_path: Path) -> None:
    make_run(tmp_path, "run", PARENT)
    assert plan_fork(tmp_path, "run@2", ["loss.shaping.gamma=0.3"]).notes == ()
    assert "run.prompts_per_iteration differ" in plan_fork(tmp_path, "run@2", ["run.prompts_per_iteration=4"]).notes[0]
    assert plan_fork(tmp_path, "run@0", ["run.seed=3"]).notes == ()
    with pytest.raises(UserError, match="nothing in it would differ"):
        plan_fork(tmp_path, "run@2", [])


def test_a_rerun_that_ends_early_needs_what_only_its_parent_can_make(tmp_path: Path) -> None:
    make_run(tmp_path, "run", PARENT)
    more = {"iteration": None, "to": "select", "sets": [], "reseed": None}
    with pytest.raises(UserError, match=r"reads update 1 of run, which is not published") as caught:
        plan_rerun(tmp_path, "run", "critique", **more)
    assert "cgrpo resume run" in caught.value.hint
    assert plan_rerun(tmp_path, "run", "critique", **{**more, "iteration": 1}).plan.stages
