"""The prompt of a refinement of several responses is a golden file, as the others are (test_prompt_texts.py)."""

from pathlib import Path
from typing import get_args

import pytest

from cgrpo_core.golf import AGGREGATE_VERSIONS, aggregate_messages
from cgrpo_core.prompts import INSTRUCTIONS, Template

GOLDEN = Path(__file__).parent.parent / "data" / "prompts"
PROBLEM = "Ann has 3 boxes with {4} pens each.\nHow many pens is that?"
ATTEMPTS = [("3 + 4 = 7, so \\boxed{7}.", "The sum is not asked for."), (" \n", "Nothing was answered.")]
TEMPLATES: tuple[Template, ...] = get_args(Template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_of_several_attempts_is_the_golden_one(template: Template) -> None:
    golden = GOLDEN / f"aggregate_{template}_v{AGGREGATE_VERSIONS[template]}.txt"
    (message,) = aggregate_messages(PROBLEM, ATTEMPTS, template)
    assert f"<{message['role']}>\n{message['content']}\n" == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("template", TEMPLATES)
def test_it_holds_every_attempt_with_its_critique_in_order_and_asks_in_the_form_of_the_question(
    template: Template,
) -> None:
    (message,) = aggregate_messages(PROBLEM, ATTEMPTS, template)
    places = [
        message["content"].index(text) for text in ("\\boxed{7}.", "not asked", "(nothing was written)", "Nothing")
    ]
    assert places == sorted(places)
    assert message["content"].endswith(INSTRUCTIONS[template])


def test_a_prompt_with_a_hole_in_it_is_refused() -> None:
    for problem, attempts in ((" ", ATTEMPTS), (PROBLEM, []), (PROBLEM, [("a", " ")])):
        with pytest.raises(ValueError, match=r"blank|no problem"):
            aggregate_messages(problem, attempts, "boxed")
