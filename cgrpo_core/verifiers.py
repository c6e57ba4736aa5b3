"""Whether the answer in a text equals the ground truth, by math-verify.

The text after the last `</think>` is read whole and the ground truth is put in a box: of the ways that were measured
this one agrees best with people's verdicts. math-verify's own timeouts are off, since they use SIGALRM and count a
timeout as a wrong answer: whoever calls `judge` on text from a model must be able to end it from outside.
"""

import logging
import re
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, nan, oo, zoo  # type: ignore[import-untyped]

END_OF_THOUGHT = "</think>"
MAX_CHARACTERS = 20_000
MAX_BARE_CHARACTERS = 300
NOT_BARE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff$:?]|\\boxed|\\\(|\\\[")
PLAIN_NUMBER = re.compile(r"[-+.,\d\s%]*")
COMMAND = re.compile(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+")
LETTER = re.compile(r"[A-Za-z]")
WORD = re.compile(r"[A-Za-z]{2,}")

# math-verify warns at its first call that its timeouts are off; here that is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One comparison. `unparsable`: the text holds nothing to compare. `error`: nothing was judged, `correct` is False
    for want of a verdict and must not be read as one."""

    answer: str | None
    correct: bool
    status: Literal["ok", "unparsable", "error"]


def scored_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return the part of `text` that is judged: what follows the last `</think>`, and of that the last
    `max_characters` characters, because the answer stands at the end."""
    return text.rpartition(END_OF_THOUGHT)[2][-max_characters:]


def judge(text: str, ground_truth: str, max_characters: int = MAX_CHARACTERS) -> Judgement:
    """Compare the answer in `text` with `ground_truth`; may run for ever on a hostile text.

    A ground truth that is no mathematics is compared as a string, as math-verify does. A blank one, and a comparison
    that fails inside sympy without any other reading being equal, give the status `error`.
    """
    try:
        truths = _readings(f"\\boxed{{{ground_truth}}}") if ground_truth.strip() else []
        if not truths:
            return Judgement(answer=None, correct=False, status="error")
        answers = _readings(_boxed_if_bare(scored_text(text, max_characters)))
    except Exception:  # noqa: BLE001 - sympy and ANTLR raise anything; the fault becomes a status, never a reward
        return Judgement(answer=None, correct=False, status="error")
    if not answers:
        return Judgement(answer=None, correct=False, status="unparsable")
    failed = False
    for truth, answer in product(truths, answers):
        equal = _equal(truth, answer)
        if equal:
            return Judgement(answer=_shown(answers), correct=True, status="ok")
        failed = failed or equal is None
    return Judgement(answer=_shown(answers), correct=False, status="error" if failed else "ok")


def _boxed_if_bare(text: str) -> str:
    """Return `text` in a box when it is one formula and nothing else, of which math-verify would find the last number.

    Not for a plain number, nor for a calculation with its result (`5 + 3 = 8`): those are found as they are.
    """
    bare = text.strip().rstrip(".")
    if not bare or len(bare) > MAX_BARE_CHARACTERS or NOT_BARE.search(bare) or PLAIN_NUMBER.fullmatch(bare):
        return text
    left, equals, _ = bare.partition("=")
    calculation = equals and not LETTER.search(left)
    return text if calculation or WORD.search(COMMAND.sub(" ", bare)) else f"\\boxed{{{bare}}}"


def _readings(text: str) -> list[Any]:
    """Return what math-verify extracts: a sympy expression if it could be parsed, then the string itself."""
    readings: list[Any] = parse(text, parsing_timeout=None, raise_on_error=True)
    return readings


def _equal(truth: Any, answer: Any) -> bool | None:
    """Return whether one reading of the ground truth equals one of the answer; None when the comparison failed."""
    if isinstance(answer, Basic) and isinstance(truth, Basic) and _undefined(answer) and not _undefined(truth):
        return False  # 1/0 is an answer, and a wrong one; sympy refuses to compare it
    try:
        return bool(verify(truth, answer, timeout_seconds=None, raise_on_error=True))
    except (Exception, TimeoutException):  # noqa: BLE001 - reported as None, which becomes the status `error`
        return None


def _undefined(value: Basic) -> bool:
    return bool(value.has(nan, zoo, oo, -oo))


def _shown(answers: list[Any]) -> str:
    """Return the extracted answer as text that can be stored: its source, else sympy's spelling of it."""
    text = next((reading for reading in reversed(answers) if isinstance(reading, str)), None)
    return (str(answers[0]) if text is None else text).encode("utf-8", "replace").decode("utf-8")
