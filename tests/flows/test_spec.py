"""pipelines.yaml: overlays, and what a user reads when something does not fit."""

from pathlib import Path

import pytest

from cgrpo_core.errors import UserError
from flows.overlays import overlay, parse_setting
from flows.resolve import read_declaration, resolve

FILE = Path(__file__).parents[2] / "pipelines.yaml"


def spec(*sets: str, profile: str | None = "cpu", presets: list[str] | None = None):
    return resolve(FILE, "critique-grpo", profile=profile, presets=presets or [], sets=list(sets))


def test_overlays_apply_in_order_base_preset_profile_set() -> None:
    base = spec(profile=None)
    assert (base.params.rollout.group_size, base.params.run.iterations) == (7, 300)
    preset = spec(profile=None, presets=["grpo"])
    assert (preset.params.rollout.group_size, preset.params.loss.kind) == (8, "grpo")
    profile = spec(presets=["grpo"])
    assert (profile.params.rollout.group_size, profile.params.run.iterations) == (8, 3)
    assert spec("rollout.group_size=5", presets=["grpo"]).params.rollout.group_size == 5


def test_the_default_preset_of_each_pipeline_is_its_own() -> None:
    assert resolve(FILE, "grpo", profile="cpu").params.loss.kind == "grpo"
    assert resolve(FILE, "critique-grpo", profile="cpu").params.loss.kind == "critique_grpo"


def test_paper_v6_is_the_method_of_the_paper() -> None:
    params = spec(profile=None).params
    assert (params.rollout.group_size, params.refine.gate, params.select.keep) == (7, "zero_correct", 1)
    assert (params.advantage.divide_by_std, params.advantage.weights) == (False, "per_origin_mean")
    assert (params.loss.shaping.gamma, params.loss.clip_low, params.loss.kl_coef) == (0.1, 0.2, 0.0)
    assert params.loss.aggregate == "token_sum_over_constant"
    assert params.select.placement == "add"


@pytest.mark.parametrize(
    ("setting", "key", "hint"),
    [
        ("rollout.grup_size=4", "params.rollout.grup_size", "group_size"),
        ("loss.shaping.gama=0.3", "params.loss.shaping.gama", "gamma"),
        ("engines.sampler.replica=2", "engines.sampler.replica", "replicas"),
        ("inputs.base_model.pakage=x", "inputs.base_model", "package"),
        ("rolout.group_size=4", "params.rolout", "rollout"),
    ],
)
def test_an_unknown_key_is_named_with_its_value_and_the_nearest_known_one(setting: str, key: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(setting)
    assert str(FILE) in caught.value.message
    assert key in caught.value.message
    assert f"did you mean {hint!r}" in caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        "rollout.group_size=four",
        "rollout.group_size=-1",
        "rollout.group_size=0",
        "rollout.temperature=.nan",
        "rollout.top_p=0",
        "run=3",
        "loss.clip_low=null",
        "loss.kl_coef=-0.1",
        "engines.sampler.kind=vlm",
        "inputs.problems.kind=jsnl",
        "optimizer.lr=-1",
    ],
)
def test_a_wrong_value_is_refused_with_its_path(setting: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(setting)
    assert setting.split(".")[0].split("=")[0] in caught.value.message


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("loss.ratio=none", "params.loss: clip_low and clip_high must be null with ratio none", "--set loss.KEY=VALUE"),
        ("advantage.weights=equal", "params: advantage.weights equal goes with", "--set KEY=VALUE"),
    ],
)
def test_a_combination_that_means_nothing_is_refused_by_its_reason(setting: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(setting)
    assert message in caught.value.message
    assert "Value error" not in caught.value.message
    assert hint in caught.value.hint


def test_the_control_without_critiques_refuses_to_have_a_model_write_them() -> None:
    with pytest.raises(UserError, match=r"refine\.mode resample reads no critique, and critique\.kind cot would ask"):
        spec("refine.mode=resample", "critique.kind=cot")


def test_a_setting_that_is_no_setting_says_how_to_write_one() -> None:
    for text in ("group_size", "=4", "a..b=4", "rollout.group_size"):
        with pytest.raises(UserError, match="key=value"):
            parse_setting(text)


def test_quotes_around_a_value_are_not_part_of_it() -> None:
    assert parse_setting("engines.critiquer.options.base_url='http://127.0.0.1:1/v1'") == {
        "engines": {"critiquer": {"options": {"base_url": "http://127.0.0.1:1/v1"}}}
    }


def test_a_number_without_a_dot_is_a_number() -> None:
    assert spec("optimizer.lr=1e-5").params.optimizer.lr == 1e-5


@pytest.mark.parametrize("what", ["profile", "preset", "pipeline"])
def test_an_unknown_name_hints_at_the_nearest(what: str) -> None:
    arguments = {"pipeline": "critique-grpo", "profile": "cpu", "presets": ["paper_v6"]}
    arguments |= {
        "pipeline": {"pipeline": "critique-gpo"},
        "profile": {"profile": "cpv"},
        "preset": {"presets": ["paper_v5"]},
    }[what]
    with pytest.raises(UserError) as caught:
        resolve(FILE, **arguments)
    assert "did you mean" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[1, 2", "version: 2", "- a\n- b", "version: 1\nrun: {}", "\x00", "{" * 5000])
def test_a_broken_file_is_a_message_not_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_declaration(path)
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_declaration(tmp_path / "none.yaml")


def test_another_kind_of_critique_keeps_what_the_profile_says_of_lengths() -> None:
    assert spec("critique.kind=indicative").params.critique.max_prompt_tokens == 384


def test_another_kind_of_input_replaces_the_declared_one_whole() -> None:
    base = {"problems": {"kind": "mixture", "parts": [1]}}
    assert overlay(base, {"problems": {"kind": "jsonl", "path": "x"}}) == {"problems": {"kind": "jsonl", "path": "x"}}
    assert overlay(base, {"problems": {"parts": [2]}}) == {"problems": {"kind": "mixture", "parts": [2]}}
