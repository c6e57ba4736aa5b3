"""Whether the answer in a text equals the ground truth.

answer_text.py finds the answer, answer_forms.py spells it, answer_equality.py compares it, symbolic.py asks math-verify
and sympy. Nothing here knows time: whoever calls `judge` on text from a model must be able to end it from outside.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from math_verify import parse

from cgrpo_core.answer_equality import equal
from cgrpo_core.answer_forms import normalised
from cgrpo_core.answer_parts import is_words, part, plain_words, split
from cgrpo_core.answer_text import MAX_BARE_CHARACTERS, MAX_CHARACTERS, bare_answer, boxed_answer, scored_text
from cgrpo_core.choices import choice_truth, chosen, said, same_list, truth_value, within_tolerance
from cgrpo_core.numerals import numeral
from cgrpo_core.symbolic import equal_reading
from cgrpo_core.verifier_table import VerifierName

CONCLUSION = re.compile(r"answer\s*(?:is|:)*\s*:?\s*([^\n]{1,200}?)[\s.!]*$", re.IGNORECASE)
# math-verify wants a space before a number; scripts without spaces, and brackets, have none.
LAST_RESORT = re.compile(r"(?<=[^\x00-\x7f]|\[)-?\d+(?:[.,/]\d+)*(?![\w.]*[A-Za-z])")
# `The answer is 5 or 6` is an enumeration; math-verify would stop at the 5.
HEDGED = re.compile(
    r"(?i:answers?)(?:\s+(?i:is|are)|\s*:)*\s*(\$?-?\d[\d.,/]*\$?(?:\s*,?\s*(?:or|and)\s+(?:\w+\s+)?\$?-?\d[\d./]*\$?)+)"
)
ARITHMETIC = re.compile(r"(?:[\d.\s+\-*/()]|\\times|\\cdot|\\div|\\frac|[{}])+")
OPERATOR = re.compile(r"(?<=[\d)}])\s*(?:[+\-*/]|\\times|\\cdot|\\div)|\\frac")
MAX_TRUTH_CHARACTERS = 400  # a longer one is a worked solution, and is read as a response is
PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One comparison. `unparsable`: the text holds nothing to compare. `error`: nothing was judged, `correct` is False
    for want of a verdict and must not be read as one."""

    answer: str | None
    correct: bool
    status: Literal["ok", "unparsable", "error"]


FAILED = Judgement(answer=None, correct=False, status="error")
NOTHING = Judgement(answer=None, correct=False, status="unparsable")


def judge(
    text: str,
    ground_truth: str,
    max_characters: int = MAX_CHARACTERS,
    question: str | None = None,
    verifier: VerifierName = "math_verify",
) -> Judgement:
    """Compare the answer in `text` with `ground_truth`; may run for ever on a hostile text.

    A ground truth that is blank or of no use to the verifier, and a comparison that fails inside sympy without any
    other being equal, give `error`. An answer that only repeats the sum which the question asks for is wrong
    (`repeats_question`).
    """
    found = scored_text(text, max_characters)
    try:
        if not ground_truth.strip():
            return FAILED
        match verifier:
            case "multiple_choice":
                return _judged_choice(ground_truth, found)
            case "boolean":
                return _judged_boolean(ground_truth, found)
            case "theoremqa":
                return _judged_theorem(ground_truth, found, question)
        return _judged_mathematics(ground_truth, found, question)
    except Exception:  # noqa: BLE001 - sympy and ANTLR raise anything; the fault becomes a status, never a reward
        return FAILED


def _judged_choice(ground_truth: str, text: str) -> Judgement:
    truth, choice = choice_truth(ground_truth), chosen(text)
    if truth is None:
        return FAILED
    return NOTHING if choice is None else Judgement(answer=choice, correct=choice == truth, status="ok")


def _judged_boolean(ground_truth: str, text: str) -> Judgement:
    truth, words = truth_value(ground_truth), said(text)
    if truth is None:
        return FAILED
    return NOTHING if words is None else Judgement(answer=words, correct=truth_value(words) is truth, status="ok")


def _judged_theorem(ground_truth: str, text: str, question: str | None) -> Judgement:
    """Judge by the form of the ground truth: true or false, an option, a list, or mathematics with 1% on decimals."""
    if truth_value(ground_truth) is not None and len(ground_truth.split()) == 1:
        return _judged_boolean(ground_truth, text)
    if re.fullmatch(r"\([a-jA-J]\)", ground_truth.strip()):
        return _judged_choice(ground_truth, text)
    judgement = _judged_mathematics(ground_truth, text, question)
    if judgement.status != "ok" or judgement.correct or judgement.answer is None:
        return judgement
    truth, answer = _truth(ground_truth), normalised(judgement.answer)
    return replace(judgement, correct=same_list(truth, answer) or within_tolerance(truth, answer))


def _judged_mathematics(ground_truth: str, text: str, question: str | None) -> Judgement:
    truth = _truth(ground_truth)
    if not truth:
        return FAILED
    boxed = boxed_answer(text)
    content = boxed if boxed is not None else bare_answer(text) or _labelled(text)
    if content is None and plain_words(text).startswith("\\"):  # words that mean a sign, as `no solution`
        content = text
    return _judged_prose(truth, text, question) if content is None else _judged(truth, content, None, question)


@lru_cache(maxsize=4096)
def _truth(ground_truth: str) -> str:
    """Return the ground truth as it is compared; a box or a sentence around it is taken away."""
    boxed = boxed_answer(ground_truth)
    if boxed is None and len(ground_truth) > MAX_TRUTH_CHARACTERS:
        readings: list[Any] = parse(ground_truth, parsing_timeout=None, raise_on_error=True)
        boxed = next((reading for reading in reversed(readings) if isinstance(reading, str)), None)
    return normalised(boxed if boxed is not None else ground_truth)


def _labelled(text: str) -> str | None:
    """Return a text that is an enumeration with a name before each value, as `Max: 2, Min: 1`; None if it is not."""
    if len(text) > MAX_BARE_CHARACTERS:
        return None
    pieces = split(text.strip().rstrip("."))
    return text if len(pieces) > 1 and all(part(piece).name for piece in pieces) else None


def _judged(truth: str, content: str, reading: Any, question: str | None) -> Judgement:
    answer = normalised(content)
    if not answer:
        return NOTHING
    shown = content.strip().encode("utf-8", "replace").decode("utf-8")
    if question is not None and repeats_question(answer, truth, question):
        return Judgement(answer=shown, correct=False, status="ok")
    same = equal(truth, answer)
    if not same and reading is not None and not is_words(truth):
        same = equal_reading(truth, reading, answer) or same
    if same is None:
        return Judgement(answer=shown, correct=False, status="error")
    return Judgement(answer=shown, correct=same, status="ok")


def _judged_prose(truth: str, text: str, question: str | None) -> Judgement:
    """Judge a text without a box by what math-verify finds in it, or, if the truth is words, by its conclusion."""
    if is_words(truth):
        conclusion = CONCLUSION.search(text)
        content = conclusion.group(1) if conclusion else text
        return _judged(truth, content, None, question) if content.strip() else NOTHING
    hedged = HEDGED.findall(text)
    if hedged:
        return _judged(truth, hedged[-1], None, question)
    readings: list[Any] = parse(text, parsing_timeout=None, raise_on_error=True)
    source = next((reading for reading in reversed(readings) if isinstance(reading, str)), None)
    value = next((reading for reading in readings if not isinstance(reading, str)), None)
    if not readings:
        numbers = LAST_RESORT.findall(text)
        return _judged(truth, numbers[-1], None, question) if numbers else NOTHING
    return _judged(truth, source if source is not None else str(value), value, question)


def repeats_question(answer: str, truth: str, question: str) -> bool:
    """Return whether `answer` is a calculation left standing whose numbers are all in the question: `7 + 4` for 11.

    math-verify compares values and takes it for right, so that a policy would be rewarded for repeating the question.
    It is the rule for sums, differences, products and quotients where the ground truth is one number; a fraction may
    answer for a fraction or a decimal. Powers, roots and the like are closed forms and stay as they are.
    """
    number = numeral(truth)
    if number is None or (
        numeral(answer) is not None and (number.value.denominator != 1 or ("/" not in answer and "frac" not in answer))
    ):
        return False
    if not ARITHMETIC.fullmatch(answer) or not OPERATOR.search(answer):
        return False
    asked = Counter(PLAIN_NUMBER.findall(normalised(question)))
    return not Counter(PLAIN_NUMBER.findall(answer)) - asked
