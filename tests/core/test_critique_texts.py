"""Critiques and requests for critiques are golden files; a kind is a file, its texts and a preset, and nothing else.

After a change that is meant: raise the version of the kind, and add the file that the test names.
"""

from pathlib import Path

import pytest
import yaml

from cgrpo_core.critique_kinds.indicative import indicative_critique
from cgrpo_core.critique_kinds.indicative_gt import indicative_gt_critique
from cgrpo_core.critiques import ModelKind, RuleKind, Shown, Subject, critique_kind, kind_names
from cgrpo_core.params import CritiqueParams, key_values

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "prompts"
PROBLEM = "Ann has 3 boxes with {4} pens each.\nHow many pens is that?"
ATTEMPT = "3 + 4 = 7, so \\boxed{7}."
SOLUTION = "Each of 3 boxes holds 4 pens: 3 * 4 = 12."
NOTHING = Shown(solution=False, ground_truth=False)


def subject(correct: bool = False, **changes: object) -> Subject:
    values = {"question": PROBLEM, "response_text": ATTEMPT, "ground_truth": "12", "solution": SOLUTION}
    return Subject(**(values | {"correct": correct} | changes))


def rule_text(name: str, correct: bool) -> str:
    kind = critique_kind(name)
    assert isinstance(kind, RuleKind)
    return kind.write(subject(correct))


def request(name: str, shown: Shown = NOTHING, **changes: object) -> str:
    kind = critique_kind(name)
    assert isinstance(kind, ModelKind)
    return "".join(f"<{one['role']}>\n{one['content']}\n" for one in kind.messages(subject(**changes), shown))


def ways(name: str) -> list[tuple[str, Shown]]:
    """Return the ways in which a kind can be asked: with nothing, and with each thing that it may show."""
    kind = critique_kind(name)
    if isinstance(kind, RuleKind):
        return []
    fields = {part: Shown(**{"solution": False, "ground_truth": False, part: True}) for part in sorted(kind.may_show)}
    return [(name, NOTHING), *((f"{name}_with_{part}", shown) for part, shown in fields.items())]


def test_the_kinds_are_the_files() -> None:
    assert {"indicative", "indicative_gt", "cot", "self"} <= set(kind_names())
    with pytest.raises(ValueError, match="one of cot, indicative"):
        critique_kind("indicativ")


@pytest.mark.parametrize("name", [name for name in kind_names() if isinstance(critique_kind(name), RuleKind)])
def test_the_critiques_by_rule_are_the_golden_ones(name: str) -> None:
    golden = GOLDEN / f"critique_{name}_v{critique_kind(name).version}.txt"
    assert f"{rule_text(name, True)}\n{rule_text(name, False)}\n" == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "shown"), [way for name in kind_names() for way in ways(name)])
def test_the_requests_for_a_critique_are_the_golden_ones(name: str, shown: Shown) -> None:
    kind = name.partition("_with_")[0]
    golden = GOLDEN / f"critique_{name}_v{critique_kind(kind).version}.txt"
    assert request(kind, shown) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in kind_names() if isinstance(critique_kind(name), ModelKind)])
def test_a_request_shows_what_it_is_told_to_and_never_the_verdict(name: str) -> None:
    kind = critique_kind(name)
    assert isinstance(kind, ModelKind)
    for correct in (True, False):
        assert SOLUTION not in request(name, NOTHING, correct=correct)
        assert "12" not in request(name, NOTHING, correct=correct, solution=None)
        assert request(name, NOTHING, correct=correct) == request(name, NOTHING, correct=not correct)
    if "solution" in kind.may_show:
        assert SOLUTION in request(name, Shown(solution=True, ground_truth=False))
    if "ground_truth" in kind.may_show:
        assert "12" in request(name, Shown(solution=False, ground_truth=True), solution=None)


def test_what_is_to_be_shown_must_be_there() -> None:
    with pytest.raises(ValueError, match="has none"):
        request("cot", Shown(solution=True, ground_truth=False), solution=" ")
    with pytest.raises(ValueError, match="blank"):
        request("self", Shown(solution=False, ground_truth=True), ground_truth="\n")


def test_only_the_critique_with_ground_truth_reveals_it() -> None:
    assert "12" not in indicative_critique(True) + indicative_critique(False)
    assert indicative_gt_critique(True, "12").startswith(indicative_critique(True))
    assert "12" in indicative_gt_critique(True, "12")
    assert "12" in indicative_gt_critique(False, " 12 ")
    with pytest.raises(ValueError, match="ground truth is blank"):
        indicative_gt_critique(False, " ")


def test_showing_what_a_kind_cannot_show_is_refused_with_the_reason() -> None:
    for values in (
        {"kind": "indicative", "with_solution": True},
        {"kind": "cot", "with_ground_truth": True},
        {"kind": "self", "with_solution": True},
    ):
        with pytest.raises(ValueError, match="means nothing to the kind"):
            CritiqueParams(**values)
    with pytest.raises(ValueError, match="kind must be one of"):
        CritiqueParams(kind="chain")


def test_the_version_of_the_wording_is_in_the_key() -> None:
    values = {"kind": "cot", "attempts": 3}
    assert key_values("critique", values) == {**values, "kind_version": 1}


def test_every_kind_has_a_preset() -> None:
    declaration = yaml.safe_load((ROOT / "pipelines.yaml").read_text(encoding="utf-8"))
    chosen = [preset.get("params", {}).get("critique", {}) for preset in declaration["presets"].values()]
    assert set(kind_names()) <= {critique.get("kind") for critique in [*chosen, declaration["params"]["critique"]]}
