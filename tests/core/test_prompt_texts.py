"""Prompts and critiques are golden files: a change of wording is a change of the method, and shows up in review.

After a change that is meant: raise the version in prompts.py, and edit the file that the test names. Critiques have
theirs in test_critique_texts.py.
"""

from pathlib import Path
from typing import get_args

import pytest

from cgrpo_core.critique_kinds.indicative_gt import indicative_gt_critique
from cgrpo_core.params import RolloutParams
from cgrpo_core.prompts import TEMPLATE_VERSIONS, Message, Template, question_messages, refinement_messages

GOLDEN = Path(__file__).parent.parent / "data" / "prompts"
PROBLEM = "Ann has 3 boxes with {4} pens each.\nHow many pens is that?"
ATTEMPT = "3 + 4 = 7, so \\boxed{7}."
TEMPLATES: tuple[Template, ...] = get_args(Template)


def shown(messages: list[Message]) -> str:
    return "".join(f"<{message['role']}>\n{message['content']}\n" for message in messages)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_question_prompt_is_the_golden_one(template: Template) -> None:
    golden = GOLDEN / f"question_{template}_v{TEMPLATE_VERSIONS[template]}.txt"
    assert shown(question_messages(PROBLEM, template)) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_refinement_prompt_is_the_golden_one(template: Template) -> None:
    golden = GOLDEN / f"refinement_{template}_v{TEMPLATE_VERSIONS[template]}.txt"
    critique = indicative_gt_critique(False, "12")
    assert shown(refinement_messages(PROBLEM, ATTEMPT, critique, template)) == golden.read_text(encoding="utf-8")


def test_the_boxed_question_asks_for_steps_and_a_box() -> None:
    (message,) = question_messages(PROBLEM, "boxed")
    assert message["role"] == "user"
    assert message["content"].startswith(PROBLEM)
    assert "step by step" in message["content"]
    assert "\\boxed{}" in message["content"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_refinement_is_asked_for_in_the_form_that_the_question_asks_for(template: Template) -> None:
    (question,) = question_messages(PROBLEM, template)
    (refinement,) = refinement_messages(PROBLEM, ATTEMPT, "Look again.", template)
    instruction = question["content"].removeprefix(PROBLEM).strip()
    assert refinement["content"].endswith(instruction)
    for part in (PROBLEM, ATTEMPT, "Look again."):
        assert part in refinement["content"]


def test_an_empty_response_is_quoted_as_one() -> None:
    (message,) = refinement_messages(PROBLEM, " \n", "Look again.", "boxed")
    assert "(nothing was written)" in message["content"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_with_a_hole_in_it_is_refused(template: Template) -> None:
    with pytest.raises(ValueError, match="problem is blank"):
        question_messages(" \n", template)
    with pytest.raises(ValueError, match="problem is blank"):
        refinement_messages("", ATTEMPT, "Look again.", template)
    with pytest.raises(ValueError, match="critique is blank"):
        refinement_messages(PROBLEM, ATTEMPT, " ", template)


def test_the_default_template_exists() -> None:
    assert RolloutParams().template in TEMPLATES
