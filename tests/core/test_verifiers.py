"""Answers of every shape that models give, and some that are made to break a verifier."""

import subprocess
import sys

import pytest

from cgrpo_core.answer_text import scored_text
from cgrpo_core.verifiers import judge

RIGHT = [
    (r"\boxed{2019!}", "2019!"),
    (r"\boxed{2018! \cdot 2019}", "2019!"),
    (r"\boxed{1 : 5000000}", "1:5 000 000"),
    (r"\boxed{10:00}", "10:00"),
    (r"\boxed{e^{i\pi} = -1}", "-1"),
    (r"\boxed{(1+i)^2}", "2i"),
    (r"\boxed{(-\infty, +\infty)}", "all real numbers"),
    ("No solution.", r"\emptyset"),
    (r"\boxed{x^2 \geq 4}", "x^2 ≥ 4"),
    (r"\boxed{x² + 1}", "x^2+1"),
    ("✅ 4", "4"),
    (r"\boxed{a \neq 2}", "a ≠ 2"),
    (r"计划的比例为13/28", "13/28"),
    ("The angle is [90].", "90"),
    (r"So the answer is \boxed{\frac{1}{2}}.", "0.5"),
    (r"<think>it is \boxed{3}, no</think> \boxed{4}", "4"),
    ("5 + 3 = 8", "8"),
    ("The answer is 42.", "42"),
    ("7,425,000", "7425000"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
    (r"We get $x \in (1, 2]$ so \boxed{(1,2]}", "(1,2]"),
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}"),
    (r"2n + 1", "2n+1"),
    ("It is 4.", "4"),
    ("x = 4", "4"),
    (r"\sqrt2", r"\sqrt{2}"),
    ("(1, 2)", "(1,2)"),
    ("13/4.", r"\frac{13}{4}"),
    (r"\boxed{025}", "25"),
]
WRONG = [
    (r"\boxed{2019! + 1}", "2019!"),
    (r"\boxed{\frac{2009! - 1}{2009!}}", r"\frac{2009! + 1}{2009!}"),
    (r"\boxed{n + 1 = 4}", "n = 4"),
    (r"\boxed{f(n + 1) = n}", "f(n) = n"),
    (r"\boxed{I(0) e^{t}}", "I(0) e^{-t}"),
    (r"\boxed{\gcd(m-1, n) = 1}", r"\gcd(m+1, n) = 1"),
    (r"\boxed{5602_5}", "5602_7"),
    (r"\boxed{52_3}", "52_8"),
    (r"\boxed{-\frac{\sqrt{65}}{0}}", r"-\frac{\sqrt{65}}{5}"),
    (r"\boxed{\frac{x}{0}}", "x"),
    (r"\boxed{\gcd(m+1, n) = 9}", r"\gcd(m+1, n) = 1"),
    (r"\boxed{\frac{dM}{dt} = c M^8}", r"\frac{dM}{dt} = c M^6"),
    (r"\boxed{2018!}", "2019!"),
    (r"\boxed{\frac{3}{56}}", "2011!"),
    (r"\boxed{\binom{4025}{2013}}", r"\sqrt{61}"),
    (r"\boxed{\frac{1}{2}}", "10:00"),
    (r"\boxed{1-i}", "1+i"),
    ("The answer is 4 or 5.", "4"),
    (r"\boxed{x2 \geq 4}", "x^2 ≥ 4"),
    (r"\boxed{a \neq 1}", "a ≠ 2"),
    (r"So the answer is \boxed{7}, not 8.", "8"),
    (r"<think>\boxed{4}</think> \boxed{3}", "4"),
    ("5 + 3 = 9", "8"),
    ("2n + 1", "1"),
    (r"\boxed{1/0}", "3"),
    (r"\boxed{\text{Ann}}", r"\text{Evelyn}"),
]


@pytest.mark.parametrize(("text", "ground_truth"), RIGHT)
def test_a_right_answer_is_right_however_it_is_written(text: str, ground_truth: str) -> None:
    judgement = judge(text, ground_truth)
    assert (judgement.correct, judgement.status) == (True, "ok")
    assert judgement.answer


@pytest.mark.parametrize(("text", "ground_truth"), WRONG)
def test_a_wrong_answer_is_judged_and_wrong(text: str, ground_truth: str) -> None:
    judgement = judge(text, ground_truth)
    assert (judgement.correct, judgement.status) == (False, "ok")


@pytest.mark.parametrize("text", ["", "   \n", "I do not know.", "<think>it is 4</think>", "\x00\x00"])
def test_a_text_without_an_answer_is_unparsable_and_not_wrong_by_accident(text: str) -> None:
    judgement = judge(text, "4")
    assert (judgement.status, judgement.correct, judgement.answer) == ("unparsable", False, None)


@pytest.mark.parametrize("ground_truth", ["", "  "])
def test_a_blank_ground_truth_is_an_error_and_never_a_verdict(ground_truth: str) -> None:
    assert judge(r"\boxed{4}", ground_truth).status == "error"


def test_of_a_long_text_the_end_is_kept() -> None:
    assert scored_text("abc</think>0123456789", 4) == "6789"
    text = r"\boxed{1} " + "and so on " * 10_000 + r"\boxed{2}"
    assert judge(text, "2", max_characters=500).correct
    assert not judge(text, "1", max_characters=500).correct


def test_hostile_characters_are_read_past() -> None:
    assert judge("\x00\ud800 \x1b[0m the answer is \\boxed{5}", "5").correct
    stored = judge("\\boxed{\ud800}", "5").answer or ""
    assert stored.encode("utf-8").decode("utf-8") == stored


def test_unbalanced_and_nested_boxes_do_not_raise() -> None:
    for text in (r"\boxed{\boxed{3}", r"\boxed{" * 200, "}" * 1000 + r"\boxed{3}", r"\frac{\frac{\frac{1}{", "$" * 999):
        assert judge(text, "3").status in ("ok", "unparsable", "error")


def test_the_verifier_starts_without_torch() -> None:
    check = "import sys, cgrpo_core.verifiers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
