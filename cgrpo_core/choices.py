"""Verifiers for answers that are chosen, not worked out: one letter of several, true or false, and TheoremQA's mixture.

A choice counts only where it is stated as one: in the last box, or, without a box, after `answer is`, or as a line of
its own at the end. Two choices are no choice, and a letter inside a sentence is none.
"""

import re

from cgrpo_core.answer_equality import equal
from cgrpo_core.answer_parts import bracketed, plain_words
from cgrpo_core.answer_text import SPECIAL_TOKEN, boxed_answer
from cgrpo_core.numerals import numeral

LETTERS = "A-J"  # MMLU-Pro has ten choices
CHOICE = re.compile(rf"[\s*$({{]*(?:\\text(?:bf)?\s*\{{)?[\s(*]*([{LETTERS}])(?![A-Za-z])[)\s}}.*:$]*", re.IGNORECASE)
CHOICE_WITH_TEXT = re.compile(rf"\s*(?:\\text(?:bf)?\s*\{{\s*)?\(?([{LETTERS}])[).:]\s*\}}?\s*\S.*", re.DOTALL)
CONCLUDED = re.compile(
    rf"(?i:answer|choice|option)(?:\s*(?i:is\b|:))*\s*(?i:option|choice)?[\s*$({{]*(?:\\text(?:bf)?\s*\{{\s*)?[(*]*"
    rf"\b([{LETTERS}])\b(?P<more>[)\s.*}}$]*(?:,|\band\b|\bor\b)\s*\(?[{LETTERS}]\b)?"
)
LAST_LINE = re.compile(rf"[\s*(]*([{LETTERS}])[)\s.*]*")
TRUE_WORDS, FALSE_WORDS = frozenset({"true", "yes"}), frozenset({"false", "no"})
TRUTH_VALUE = re.compile(r"\b(true|yes|false|no)\b", re.IGNORECASE)
SAID = re.compile(r"(?:answer|statement|claim)(?:\s+is|\s*:)*\s*:?\s*([^.\n]{1,60})", re.IGNORECASE)
TOLERANCE = 0.01  # of a decimal ground truth in TheoremQA, most of which are rounded measurements


def choice_truth(ground_truth: str) -> str | None:
    """Return the letter that a ground truth names, as `B`, `(B)` or `B. Paris`; None if it names none."""
    match = CHOICE.fullmatch(ground_truth) or CHOICE_WITH_TEXT.fullmatch(ground_truth)
    return match.group(1).upper() if match else None


def chosen(text: str) -> str | None:
    """Return the letter that `text` chooses; "several" for more than one; None if it chooses none."""
    boxed = boxed_answer(text)
    if boxed is not None:
        match = CHOICE.fullmatch(boxed) or CHOICE_WITH_TEXT.fullmatch(boxed)
        if match is None and re.search(rf"\b[{LETTERS}]\b\W+(?:and|or)?\W*\b[{LETTERS}]\b", boxed):
            return "several"
        return match.group(1).upper() if match else None
    concluded = list(CONCLUDED.finditer(text))
    if concluded:
        return "several" if concluded[-1]["more"] else concluded[-1].group(1).upper()
    lines = SPECIAL_TOKEN.sub("", text).strip().splitlines()
    match = LAST_LINE.fullmatch(lines[-1]) if lines else None
    return match.group(1).upper() if match else None


def truth_value(text: str) -> bool | None:
    """Return whether words say true (or yes) or false (or no); None if they say neither, or both."""
    words = {word.lower() for word in TRUTH_VALUE.findall(text)}
    if bool(words & TRUE_WORDS) == bool(words & FALSE_WORDS) or re.search(r"\bnot\b|n't\b", text):
        return None
    return bool(words & TRUE_WORDS)


def said(text: str) -> str | None:
    """Return the words in which `text` says true or false: its last box, its conclusion, or all of a short text."""
    boxed = boxed_answer(text)
    if boxed is not None:
        return plain_words(boxed)
    concluded = [match.group(1) for match in SAID.finditer(text) if TRUTH_VALUE.search(match.group(1))]
    if concluded:
        return concluded[-1]
    lines = SPECIAL_TOKEN.sub("", text).strip().splitlines()
    return lines[-1] if lines and len(lines[-1].split()) <= 2 and TRUTH_VALUE.search(lines[-1]) else None


def within_tolerance(truth: str, answer: str) -> bool:
    """Return whether two normalised answers are numbers, the ground truth a decimal, that differ by at most 1%."""
    one, other = numeral(truth), numeral(answer)
    if one is None or other is None or one.decimals is None or one.value == 0:
        return False
    return abs(one.value - other.value) <= abs(one.value) * TOLERANCE


def same_list(truth: str, answer: str) -> bool | None:
    """Return whether `[1, 2, 3]` is the answer `(1, 2, 3)` or `1, 2, 3`, in order; None if the truth is no list."""
    pair = bracketed(truth)
    if pair is None or pair[0] + pair[2] != "[]":
        return None
    bare = answer[1:-1] if answer[:1] in "[(" and answer[-1:] in ")]" else answer
    return bool(equal(f"({', '.join(pair[1])})", f"({bare})"))
