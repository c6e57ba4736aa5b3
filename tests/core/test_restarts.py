"""Where a response is restarted: its steps, the step a critique names, and the tokens that are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.params import RefineParams
from cgrpo_core.restarts import named_step, restart_place, step_starts, tokens_before

PARAGRAPHS = "First I add.\n\nThen I double it.\n\n\\boxed{7}"
HEADED = "Let us see.\nStep 1: add.\nStep 2: double.\n\nStep 3: answer."


def test_each_paragraph_is_a_step() -> None:
    starts = step_starts(PARAGRAPHS)
    assert [PARAGRAPHS[start:].split()[0] for start in starts] == ["First", "Then", "\\boxed{7}"]


def test_headings_are_steps_and_what_comes_before_them_is_of_the_first() -> None:
    starts = step_starts(HEADED)
    assert starts[0] == 0
    assert [HEADED[start : start + 6] for start in starts[1:]] == ["Step 2", "Step 3"]


def test_a_single_mention_of_a_step_is_no_heading_and_no_text_has_no_step() -> None:
    assert step_starts("Step 1 is to add.\n\nDone.") == [0, 19]
    assert step_starts("") == []
    assert step_starts("one line\n") == [0]


@pytest.mark.parametrize(
    ("critique", "step"),
    [
        ("Step 2 doubles the wrong number; step 3 follows from it.", 2),
        ("Step 1 holds. Step 2 does not. Restart from step 2.", 2),
        ("Restart at step 1. No: restart from step 3.", 3),
        ("The final answer of this attempt was checked and is wrong.", None),
        ("Step 9 is wrong.", None),
        ("Step 0 is wrong.", None),
        ("The steps are wrong; footstep 2.", None),
    ],
)
def test_the_step_that_a_critique_names(critique: str, step: int | None) -> None:
    assert named_step(critique, steps=3) == step


@pytest.mark.parametrize(("rule", "place"), [("start", 0), ("half", PARAGRAPHS.index("Then")), ("skip", None)])
def test_a_critique_without_a_step_restarts_where_the_parameter_says_and_is_marked(rule: str, place: int) -> None:
    assert restart_place(PARAGRAPHS, "Wrong.", RefineParams(unnamed_step=rule)) == (place, "unnamed")
    named = restart_place(PARAGRAPHS, "Step 2 is wrong.", RefineParams(unnamed_step=rule))
    assert named == (PARAGRAPHS.index("Then"), "named")


def decode(token_ids: list[str]) -> str:
    return "".join(token_ids)


def test_a_token_that_straddles_the_place_is_not_kept_and_one_token_is_always_left() -> None:
    tokens = ["ab", "cd", "ef"]
    assert [tokens_before(tokens, place, decode) for place in (0, 1, 2, 3, 4, 99)] == [0, 0, 1, 1, 2, 2]
    assert tokens_before(["a"], 99, decode) == 0
    assert tokens_before([], 0, decode) == 0


@given(st.lists(st.text(min_size=1, max_size=4), max_size=20), st.integers(0, 60))
def test_what_is_kept_is_the_longest_text_before_the_place(tokens: list[str], place: int) -> None:
    kept = tokens_before(tokens, place, decode)
    assert kept == max(n for n in range(max(len(tokens), 1)) if n == 0 or len(decode(tokens[:n])) <= place)
