"""Whether the reasoning of a refinement leads to its answer, or the answer was only told."""

import time

import pytest

from cgrpo_core.leakage import reasoning


@pytest.mark.parametrize(
    ("text", "ground_truth"),
    [
        ("5 horses have 4 legs each, so 5 * 4 = 20. The answer is 20.", "20"),
        ("We get $5 \\times 4 = \\boxed{20}$.", "20"),
        ("12 + 8 = 20 horses", "20"),
        ("1000 + 234 = 1,234", "1234"),
        ("\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}", "\\frac{3}{4}"),
        ("2 * 3 = 6 = 6", "6"),
        ("first 2+2=4; then 4+1=5", "5"),
    ],
)
def test_a_calculation_that_gives_the_answer_agrees(text, ground_truth):
    assert reasoning(text, ground_truth) == "agrees"


@pytest.mark.parametrize(
    "text", ["5 * 4 = 19. But the correct answer is 20.", "5 + 4 = 9\nThe answer is \\boxed{20}", "2 + 2 = 4, x = 20"]
)
def test_working_out_something_else_and_then_saying_the_answer_disagrees(text):
    assert reasoning(text, "20") == "disagrees"


@pytest.mark.parametrize("text", ["The correct answer is 20.", "x = 20", "", "=", "-20 = 20", "As told, 20 = 20."])
def test_a_bare_statement_is_no_reasoning(text):
    assert reasoning(text, "20") == "no_reasoning"


def test_a_blank_ground_truth_agrees_with_nothing():
    assert reasoning("1 + 1 = ", "") == "disagrees"


@pytest.mark.parametrize("piece", ["=", "1+1=", "a+", "\\frac{", " ", "aa", "$,", "((("])
def test_hostile_text_costs_no_more_than_its_length(piece):
    began = time.process_time()
    reasoning(piece * 1_000_000, "1")
    assert time.process_time() - began < 5
