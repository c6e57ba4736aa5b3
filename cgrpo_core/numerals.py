"""Numbers that can be compared exactly, without sympy: integers, decimals, fractions, mixed numbers, powers of ten.

This is the fast path of the verifier. On integers, fractions and decimals it gives math-verify's verdicts
(tests/core/test_numerals.py compares the two on random numerals), except where math-verify rounds to six decimals a
number that is itself that small.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<number>{NUMBER})\s*(?P<power>(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{{\s*(?P<exponent>[+-]?\d+)\s*\}}|(?P<digit>\d+)))?\s*(?P<percent>\\%)?"
)
POWER_OF_TEN = re.compile(r"(?P<sign>[+-]?)\s*10\s*\^\s*(?:\{\s*(?P<exponent>-?\d+)\s*\}|(?P<digit>\d+))")
FRACTION = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)\s*)?\\frac\s*\{{\s*(?P<above_sign>-?)\s*(?P<above>{NUMBER})\s*\}}\s*\{{\s*(?P<below_sign>-?)\s*(?P<below>{NUMBER})\s*\}}\s*(?P<percent>\\%)?"
)
SLASH = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:(?P<whole>\d+)\s+)?\(?\s*(?P<above>{NUMBER})\s*\)?\s*/\s*\(?\s*(?P<below>{NUMBER})\s*\)?\s*(?P<percent>\\%)?"
)
BASED = re.compile(r"(?P<digits>[0-9A-Za-z]+)_\{?(?P<base>\d+)\}?")
GROUPED = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:[.,]\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,(?:\d{1,2}|\d{4,})")
MAX_DIGITS = 400
MAX_EXPONENT = 400

# A decimal is taken for an exact value that it is correctly rounded from only with so many significant digits: fewer
# where the author of the ground truth did the rounding, more where the answer did.
TRUTH_DIGITS = 3
ANSWER_DIGITS = 4
ABSOLUTE = Fraction(1, 2_000_000)  # math-verify rounds to six decimals
RELATIVE = Fraction(1, 100_000)  # which says nothing of a number that is itself that small


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeral:
    """A number as written. `decimals`: digits after the point, None for an exact number; `significant`: its digits."""

    value: Fraction
    decimals: int | None = None
    significant: int = 0
    percent: bool = False


def numeral(text: str) -> Numeral | None:
    """Return the number that `text`, normalised, is; None if it is none."""
    if not text or len(text) > MAX_DIGITS or not re.search(r"\d", text):
        return None
    if match := PLAIN.fullmatch(text):
        return _plain(match)
    if match := POWER_OF_TEN.fullmatch(text):
        return _scaled(Fraction(_signed(match["sign"])), match["exponent"] or match["digit"])
    if match := (FRACTION.fullmatch(text) or SLASH.fullmatch(text)):
        return _fraction(match)
    if GROUPED.fullmatch(text):
        return numeral(text.replace(" ", "").replace(",", "."))
    return None


def _signed(sign: str | None) -> int:
    return -1 if sign == "-" else 1


def _plain(match: re.Match[str]) -> Numeral | None:
    written = match["number"]
    digits = written.replace(".", "")
    decimals = len(written.partition(".")[2]) if "." in written else None
    exponent = match["exponent"] or match["digit"]
    value = _signed(match["sign"]) * Fraction(int(digits or "0"), 10 ** (decimals or 0))
    significant = len(digits.lstrip("0"))
    if exponent is not None:
        if abs(int(exponent)) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** int(exponent)
        decimals = None if decimals is None else decimals - int(exponent)
    # 142.0 is the whole number 142
    if decimals is not None and value.denominator == 1 and set(written.partition(".")[2]) <= {"0"}:
        decimals = None
    return Numeral(value=value, decimals=decimals, significant=significant, percent=bool(match["percent"]))


def _scaled(value: Fraction, exponent: str) -> Numeral | None:
    return None if abs(int(exponent)) > MAX_EXPONENT else Numeral(value=value * Fraction(10) ** int(exponent))


def _fraction(match: re.Match[str]) -> Numeral | None:
    parts = match.groupdict()
    below = Fraction(parts["below"]) * _signed(parts.get("below_sign"))
    if below == 0:
        return None
    value = Fraction(parts["above"]) * _signed(parts.get("above_sign")) / below
    if parts["whole"]:
        if "." in parts["above"] + parts["below"]:
            return None
        value += int(parts["whole"])
    return Numeral(value=_signed(parts["sign"]) * value, percent=bool(parts["percent"]))


def equal_numerals(truth: Numeral, answer: Numeral) -> bool:
    """Return whether two numbers are the same. `50%` is 50 and 1/2; only a number that has the sign is both."""
    if _close(truth, answer):
        return True
    if truth.percent and not answer.percent:
        return _close(_divided(truth), answer)
    if answer.percent and not truth.percent:
        return _close(truth, _divided(answer))
    return False


def _divided(numeral: Numeral) -> Numeral:
    decimals = None if numeral.decimals is None else numeral.decimals + 2
    return Numeral(value=numeral.value / 100, decimals=decimals, significant=numeral.significant)


def _close(truth: Numeral, answer: Numeral) -> bool:
    if truth.value == answer.value:
        return True
    if truth.decimals is None and answer.decimals is None:
        return False
    if near(truth.value, answer.value):
        return True
    if truth.decimals is not None and answer.decimals is None:
        return rounds_to(answer.value, truth, TRUTH_DIGITS)
    if answer.decimals is not None and truth.decimals is None:
        return rounds_to(truth.value, answer, ANSWER_DIGITS)
    return False


def near(one: Fraction, other: Fraction) -> bool:
    """Return whether two numbers, one of them a decimal, differ by less than what six decimals can tell."""
    difference = abs(one - other)
    return difference <= ABSOLUTE and difference <= RELATIVE * max(abs(one), abs(other))


def rounds_to(exact: Fraction, decimal: Numeral, digits: int) -> bool:
    """Return whether `decimal` is `exact`, no whole number, correctly rounded and has at least `digits` digits."""
    if decimal.decimals is None or decimal.significant < digits or exact.denominator == 1:
        return False
    return abs(exact - decimal.value) <= Fraction(1, 2) * Fraction(10) ** -decimal.decimals


def based_numeral(text: str) -> tuple[int | None, str] | None:
    """Return (value, digits) of a number in another base, as `2012_3`, the value None if it has no such digits.

    None if `text` is no number with a base.
    """
    match = BASED.fullmatch(text)
    if not match or not match["digits"][0].isdigit() or len(text) > MAX_DIGITS:
        return None
    try:
        return int(match["digits"], int(match["base"]) or -1), match["digits"]
    except ValueError:
        return None, match["digits"]
