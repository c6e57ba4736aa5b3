"""Answers that are chosen: a letter, true or false, and the mixture of TheoremQA."""

import pytest

from cgrpo_core.verifier_table import VerifierName, rule_of, verifier_for, written_truth
from cgrpo_core.verifiers import judge


def verdict(text: str, ground_truth: str, verifier: VerifierName) -> tuple[bool, str]:
    judgement = judge(text, ground_truth, verifier=verifier)
    return judgement.correct, judgement.status


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(B)",
        r"\boxed{B}",
        r"\boxed{\text{(B)}}",
        r"\boxed{b}",
        r"$\boxed{\textbf{(B) } 12}$",
        "The answer is (B).",
        "Answer: **B**",
        "I first took A for right.\nThe correct option is B",
        "so\n**B.**",
        r"<think>\boxed{A}</think> B",
    ],
)
def test_a_letter_is_a_choice_where_it_is_stated_as_one(text: str) -> None:
    assert verdict(text, "B", "multiple_choice") == (True, "ok")
    assert verdict(text, "C", "multiple_choice") == (False, "ok")


@pytest.mark.parametrize("text", [r"\boxed{A, B}", r"\boxed{A or B}", "The answer is A or B", r"\boxed{A}, \boxed{B}"])
def test_two_choices_are_wrong(text: str) -> None:
    assert verdict(text, "B", "multiple_choice") == (False, "ok")


@pytest.mark.parametrize("text", ["", "A cat sat on B street", "Because of option pricing, it rises", r"\boxed{12}"])
def test_a_letter_in_a_sentence_is_no_choice(text: str) -> None:
    assert verdict(text, "B", "multiple_choice") == (False, "unparsable")


def test_a_ground_truth_that_is_no_letter_is_an_error_of_the_data() -> None:
    assert verdict("B", "12", "multiple_choice") == (False, "error")
    assert verdict("True", "12", "boolean") == (False, "error")


@pytest.mark.parametrize("text", ["True", r"\boxed{\text{True}}", "The answer is yes.", "So the statement is true."])
def test_yes_is_true(text: str) -> None:
    assert verdict(text, "True", "boolean") == (True, "ok")
    assert verdict(text, "no", "boolean") == (False, "ok")


def test_true_or_false_and_not_true_are_no_answer() -> None:
    assert verdict(r"\boxed{true or false}", "True", "boolean") == (False, "ok")
    assert verdict("It is not true that this is the end of it.", "True", "boolean") == (False, "unparsable")


@pytest.mark.parametrize(
    ("text", "ground_truth", "correct"),
    [
        (r"\boxed{True}", "True", True),
        (r"\boxed{(b)}", "(b)", True),
        (r"\boxed{a}", "(b)", False),
        (r"\boxed{(1, 2, 4)}", "[1, 2, 4]", True),
        (r"\boxed{1, 2, 4}", "[1, 2, 4]", True),
        (r"\boxed{(2, 1, 4)}", "[1, 2, 4]", False),
        (r"\boxed{0.693}", "0.69314", True),
        (r"\boxed{\ln 2}", "0.69315", True),
        (r"\boxed{0.72}", "0.69314", False),
        (r"\boxed{101}", "100", False),
    ],
)
def test_theoremqa_is_judged_by_the_form_of_its_ground_truth(text: str, ground_truth: str, correct: bool) -> None:
    assert verdict(text, ground_truth, "theoremqa") == (correct, "ok")


@pytest.mark.parametrize(
    ("source", "verifier"),
    [
        ("MMLU-Pro", "multiple_choice"),
        ("TIGER-Lab/MMLU-Pro", "multiple_choice"),
        ("gpqa_diamond", "multiple_choice"),
        ("TheoremQA", "theoremqa"),
        ("openai/gsm8k", "math_verify"),
        ("aime24", "math_verify"),
        (None, "math_verify"),
    ],
)
def test_a_data_source_has_its_verifier(source: str | None, verifier: str) -> None:
    assert rule_of(source).verifier == verifier
    assert verifier_for("by_source", source) == verifier
    assert verifier_for("boolean", source) == "boolean"


def test_what_a_source_writes_before_the_ground_truth_is_taken_away() -> None:
    assert written_truth("48/2 = 24\n#### 72", "gsm8k") == "72"
    assert written_truth("#### 72", "aime24") == "#### 72"
