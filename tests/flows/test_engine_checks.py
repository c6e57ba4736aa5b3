"""What engines cannot do is refused before anything runs, with the reason and a way out."""

import itertools
from pathlib import Path

import pytest

from cgrpo_core.errors import UserError
from flows.plan import compile_plan
from flows.resolve import read_declaration, resolve
from flows.runner import get_model
from storage.plans import Plan

FILE = Path(__file__).parents[2] / "pipelines.yaml"
BINDING = [name for name, preset in read_declaration(FILE)[0].presets.items() if preset.bind]


def plan(*sets: str, presets: list[str] | None = None, profile: str = "cpu") -> Plan:
    sets = ("run.iterations=1", *sets)
    spec = resolve(FILE, "critique-grpo", profile=profile, presets=presets or [], sets=list(sets))
    return compile_plan(spec, {name: {"digest": name * 8} for name in spec.inputs})


def key_of(made: Plan, stage: str) -> str:
    return next(one.key for one in made.stages if one.stage == stage)


@pytest.mark.parametrize(
    ("sets", "presets", "reason", "way_out"),
    [
        (("critique.kind=cot",), [], "asks a model", "critique_cot"),
        (("critique.kind=self",), [], "asks a model", "critique_self"),
        (("critique.kind=indicative",), ["critique_cot"], "written by rule", "cot or self"),
        (("critique.kind=self",), ["critique_cot"], "the policy itself", "critique_self"),
        (("critique.kind=self",), ["critique_cot_local"], "the policy itself", "critique_self"),
        (("engines.helper.kind=openai",), ["weak_to_strong"], "only writes critiques", "vllm"),
        (("engines.trainer.policy=fixed",), [], "a trainer", "sample"),
        (("engines.critiquer.options.modle=x",), ["critique_cot"], "modle", "model"),
        (("rollout.max_response_tokens=400",), [], "max_model_len = 512 is less", "raise max_model_len to 656"),
        (("critique.max_prompt_tokens=500",), ["critique_self"], "critique.max_prompt_tokens = 500", "max_model_len"),
        (("engines.helper.options.max_model_len=100",), ["weak_to_strong"], "engines.helper", "max_model_len"),
    ],
)
def test_what_cannot_be_is_refused(sets: tuple[str, ...], presets: list[str], reason: str, way_out: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(*sets, presets=presets)
    assert reason in caught.value.message
    assert way_out in caught.value.hint


def test_showing_what_a_kind_cannot_show_is_refused() -> None:
    with pytest.raises(UserError, match="means nothing to the kind"):
        plan("critique.with_solution=true")


@pytest.mark.parametrize(("preset", "profile"), list(itertools.product(BINDING, ("cpu", "1-gpu", "8-gpu"))))
def test_every_preset_that_binds_an_engine_can_be_planned(preset: str, profile: str) -> None:
    bound = {one.stage: one.engine["name"] for one in plan(presets=[preset], profile=profile).stages if one.engine}
    assert read_declaration(FILE)[0].presets[preset].bind.items() <= bound.items()


def test_how_patiently_and_where_a_model_is_asked_changes_no_key() -> None:
    before = plan(presets=["critique_cot"])
    for setting in (
        *("base_url='http://127.0.0.1:1/v1'", "api_key_env=OTHER", "concurrency=2", "timeout_s=5", "max_retries=0"),
        *("deadline_s=9", "give_up_after=2"),
    ):
        after = plan(f"engines.critiquer.options.{setting}", presets=["critique_cot"])
        assert key_of(after, "critique") == key_of(before, "critique")


def test_what_changes_what_is_said_changes_the_key_of_the_critique_and_of_nothing_before_it() -> None:
    before = plan(presets=["critique_cot"])
    for setting in (
        *("engines.critiquer.options.model=other", "engines.critiquer.options.request={seed: 1}"),
        *("critique.attempts=2", "critique.temperature=0.1", "critique.with_solution=true", "critique.keep=any"),
        *("critique.max_critique_tokens=50", "critique.degraded=indicative"),
    ):
        after = plan(setting, presets=["critique_cot"])
        assert key_of(after, "critique") != key_of(before, "critique")
        assert key_of(after, "refine") != key_of(before, "refine")
        assert key_of(after, "verify") == key_of(before, "verify")


def test_another_model_that_refines_changes_the_key_of_the_refinements_alone() -> None:
    before, after = plan(), plan(presets=["weak_to_strong"])
    assert key_of(after, "critique") == key_of(before, "critique")
    assert key_of(after, "refine") != key_of(before, "refine")


def test_a_limit_on_degraded_critiques_and_a_price_are_in_no_key() -> None:
    assert key_of(plan("limits.degraded_critiques_max=0.1"), "critique") == key_of(plan(), "critique")
    assert plan(presets=["critique_cot"]).config["prices"]["gpt-4o"]["prompt_per_million"] > 0


def test_only_models_that_some_stage_asks_are_got(monkeypatch, capsys) -> None:
    monkeypatch.setattr("tasks.models.resolve_model", lambda declaration, home, base_dir, progress: declaration["kind"])
    get_model(FILE, "critique-grpo", profile="cpu", sets=["inputs.helper_model={kind: path, path: nowhere}"])
    assert capsys.readouterr().out == "pypi_gguf\n"
