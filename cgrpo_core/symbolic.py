"""Equality of two formulas, by math-verify and sympy, with guards where math-verify accepts too much or too little.

Too much: numbers are compared at six decimals, so that every number below 1e-7 equals 0, and a box that cannot be
parsed is searched for a number. Too little: sympy's `simplify` does not find every identity, and rounded decimals of
exact values, degrees against radians and sets against inequalities are not compared at all.
Everything here may run for ever, or end in a MemoryError, on a hostile formula: whoever calls must be able to end it.
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import parse, verify
from math_verify.errors import TimeoutException
from math_verify.parser import LatexExtractionConfig
from sympy import (  # type: ignore[import-untyped]
    Basic,
    Derivative,
    Expr,
    Float,
    I,
    Integral,
    Interval,
    MatrixBase,
    Pow,
    Rational,
    Set,
    Union,
    nan,
    oo,
    pi,
    zoo,
)
from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]
from sympy.core.relational import Equality, Relational  # type: ignore[import-untyped]
from sympy.logic.boolalg import BooleanAtom  # type: ignore[import-untyped]

from cgrpo_core.numerals import ANSWER_DIGITS, TRUTH_DIGITS, Numeral, near, numeral, rounds_to

# math-verify warns at its first call that its timeouts are off; here that is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)

LATEX = [
    LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last", equations=False
        ),
    )
]
POINTS = ((3, 7), (11, 13), (-5, 17), (23, 9), (-29, 8), (2, 31), (37, 41), (-1, 43))  # numerator, denominator
ENOUGH_POINTS = 3
DIGITS = 30
SAME = Float("1e-20")  # of the larger, at 30 digits
SAME_DECIMAL = Float("1e-12")
MAX_SYMBOLS = 6


@lru_cache(maxsize=4096)
def formula(content: str) -> Any | None:
    """Return the sympy value of a normalised answer, or None if it is no formula. Text is never searched for one."""
    readings = parse(f"\\boxed{{{content}}}", LATEX, parsing_timeout=None, raise_on_error=True)
    value = next((reading for reading in readings if not isinstance(reading, str)), None)
    if isinstance(value, BooleanAtom):
        return None  # an equation that sympy takes for always true, or never: nothing is left to compare
    if isinstance(value, Expr) and _names(value) == {"i"}:
        return value.subs(dict.fromkeys(value.free_symbols, I))  # the parser leaves it a symbol
    return value


def _names(value: Any) -> set[str]:
    return {str(symbol) for symbol in value.free_symbols}


def equal_formulas(truth_text: str, answer_text: str) -> bool | None:
    """Return whether two normalised answers are equal as formulas; None when the comparison failed."""
    truth, answer = formula(truth_text), formula(answer_text)
    if truth is None or answer is None:
        return False
    return _equal_values(truth, answer, truth_text, answer_text)


def equal_reading(truth_text: str, reading: Any, answer_text: str) -> bool | None:
    """Return whether a normalised ground truth equals what math-verify read in a text; None when that failed."""
    truth = formula(truth_text)
    return False if truth is None else _equal_values(truth, reading, truth_text, answer_text)


def _equal_values(truth: Any, answer: Any, truth_text: str, answer_text: str) -> bool | None:
    if isinstance(answer, Basic) and isinstance(truth, Basic) and _undefined(answer) and not _undefined(truth):
        return False  # 1/0 is an answer, and a wrong one; sympy refuses to compare it
    if isinstance(truth, Basic) and truth.has(Derivative, Integral):
        return bool(truth == answer)  # solved for some symbol, equations that differ look alike
    if _constant(truth) and _constant(answer):
        return _equal_constants(truth, answer, truth_text, answer_text)
    if isinstance(answer, Equality) and isinstance(truth, Expr) and _names(answer.lhs) - {"i"}:
        return False  # `n + 1 = 4` is not 4; a calculation with its result has no symbol, and `x = 4` was taken apart
    if isinstance(truth, Equality) and isinstance(answer, Equality):
        proportional = _proportional(truth, answer)
        if proportional is not None:
            return proportional
    equal = _by_math_verify(truth, answer)
    if equal is not True and _probed(truth, answer):
        return True
    return equal


def _by_math_verify(truth: Any, answer: Any) -> bool | None:
    try:
        return bool(verify(truth, answer, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True))
    except (Exception, TimeoutException):  # noqa: BLE001 - reported as None, which becomes the status `error`
        return None


def _undefined(value: Basic) -> bool:
    """Return whether a value has a division by zero in it, carried out or not."""
    return bool(value.has(nan, zoo)) or any(power.base.is_zero and power.exp.is_negative for power in value.atoms(Pow))


def _constant(value: Any) -> bool:
    """Return whether a value is a number: no symbol, no set, no relation."""
    return (
        isinstance(value, Basic)
        and not isinstance(value, MatrixBase | Set | Relational)
        and not value.free_symbols
        and bool(getattr(value, "is_number", False))
        and not value.has(oo, -oo, AppliedUndef)
    )


def _equal_constants(truth: Any, answer: Any, truth_text: str, answer_text: str) -> bool | None:
    """Compare two numbers by their values at 30 digits, and a decimal with an exact value by rounding."""
    try:
        exact, other_exact = truth.doit(), answer.doit()
        if exact.is_Rational and other_exact.is_Rational:
            return bool(exact == other_exact)
        one, other = exact.evalf(DIGITS), other_exact.evalf(DIGITS)
        if _undefined(other) and not _undefined(one):
            return False
        if not (one.is_number and other.is_number) or _undefined(one):
            return None
        size, difference = max(abs(one), abs(other)), abs(one - other)  # sympy's, which 2019! does not overflow
        rounded = truth.has(Float) or answer.has(Float)
        same = bool(difference <= (SAME_DECIMAL if rounded else SAME) * size)
    except Exception:  # noqa: BLE001 - sympy raises anything; None becomes the status `error`
        return None
    if same:
        return True
    if not rounded or not (one.is_real and other.is_real):
        return False
    exact_one, exact_other = Fraction(str(one)), Fraction(str(other))
    if near(exact_one, exact_other):
        return True
    return _rounded(exact_one, truth_text, answer_text, ANSWER_DIGITS) or _rounded(
        exact_other, answer_text, truth_text, TRUTH_DIGITS
    )


def _rounded(exact: Fraction, exact_text: str, decimal_text: str, digits: int) -> bool:
    """Return whether one side is a decimal that the other, which holds no decimal, rounds to."""
    decimal: Numeral | None = numeral(decimal_text)
    if decimal is None or re.search(r"\d\.\d|\.\d", exact_text):
        return False
    if decimal.percent:
        decimal = Numeral(
            value=decimal.value / 100,
            decimals=None if decimal.decimals is None else decimal.decimals + 2,
            significant=decimal.significant,
        )
    return rounds_to(exact, decimal, digits)


def _proportional(truth: Any, answer: Any) -> bool | None:
    """Return whether two equations in the same two or more symbols say the same: their sides' differences are in one
    ratio at all points. None for other equations, which math-verify solves."""
    one, other = truth.lhs - truth.rhs, answer.lhs - answer.rhs
    if len(one.free_symbols) < 2 or one.free_symbols != other.free_symbols or one.has(AppliedUndef):
        return None
    symbols = sorted(one.free_symbols, key=lambda symbol: str(symbol.name))
    ratios = []
    for place in range(len(POINTS)):
        values = [Rational(*POINTS[(place + offset) % len(POINTS)]) + offset for offset in range(len(symbols))]
        at = dict(zip(symbols, values, strict=True))
        try:
            ratio = (one.subs(at) / other.subs(at)).evalf(DIGITS)
        except Exception:  # noqa: BLE001 - undefined at this point, which says nothing
            continue
        if ratio.is_Float and ratio != 0:
            ratios.append(ratio)
    if len(ratios) < ENOUGH_POINTS:
        return None
    return all(abs(ratio - ratios[0]) <= SAME * abs(ratios[0]) for ratio in ratios)


def _probed(truth: Any, answer: Any) -> bool:
    """Return whether two expressions of the same symbols have equal values at rational points, to 20 digits.

    A point at which both are not real is passed over, one at which only one is not real tells them apart. Two different
    expressions that agree at three or more such points are not met in practice.
    """
    if not _plain_expression(truth) or not _plain_expression(answer):
        return False
    symbols = sorted(truth.free_symbols, key=lambda symbol: str(symbol.name))
    names = [symbol.name for symbol in symbols]
    others = {symbol.name: symbol for symbol in answer.free_symbols}
    if not 1 <= len(names) <= MAX_SYMBOLS or set(names) != set(others):
        return False
    agreed = 0
    for place in range(len(POINTS)):
        values = [Rational(*POINTS[(place + offset) % len(POINTS)]) + offset for offset in range(len(names))]
        try:
            one = truth.subs(dict(zip(symbols, values, strict=True))).evalf(DIGITS)
            other = answer.subs({others[name]: value for name, value in zip(names, values, strict=True)}).evalf(DIGITS)
        except Exception:  # noqa: BLE001 - undefined at this point, which says nothing
            continue
        if not (one.is_Float or one.is_Integer or one.is_Rational):
            if other.is_Float or other.is_Integer or other.is_Rational:
                return False
            continue
        if not (other.is_Float or other.is_Integer or other.is_Rational):
            return False
        if abs(one - other) > SAME * max(abs(one), abs(other), 1e-10):
            return False
        agreed += 1
    return agreed >= ENOUGH_POINTS


def _plain_expression(value: Any) -> bool:
    return (
        isinstance(value, Basic)
        and not isinstance(value, MatrixBase | Set | Relational)
        and hasattr(value, "evalf")
        and bool(getattr(value, "is_Add", False) or value.is_Mul or value.is_Pow or value.is_Function)
        and not value.has(AppliedUndef, Relational)
    )


def as_set(content: str) -> Any | None:
    """Return the set of real numbers that a normalised inequality, interval or set is; None if it is none."""
    value: Any = formula(content)
    if isinstance(value, Set):
        return value
    if isinstance(value, Relational) or type(value).__name__ == "And":
        if len(value.free_symbols) != 1:
            return None
        try:
            return value.as_set()
        except Exception:  # noqa: BLE001 - sympy cannot solve it; it stays a relation
            return None
    return None


def union(sets: list[Any]) -> Any:
    """Return the union of sets."""
    return Union(*sets)


def equal_sets(truth: Any, answer: Any) -> bool:
    """Return whether two sets of real numbers are the same."""
    if truth == answer:
        return True
    if isinstance(truth, Interval) and isinstance(answer, Interval):
        return bool(_by_math_verify(truth, answer))
    try:
        return bool(truth.symmetric_difference(answer).is_empty)
    except Exception:  # noqa: BLE001 - sympy cannot tell, so they are not known to be equal
        return False


def in_radians(content: str) -> Any | None:
    """Return a normalised angle in degrees as sympy radians; None if it is no number of degrees."""
    degrees = re.fullmatch(r"(.*?)\s*\^\\circ", content)
    value = formula(degrees.group(1)) if degrees else None
    return value * pi / 180 if value is not None and _constant(value) else None


def equal_angles(degrees: str, radians: str) -> bool:
    """Return whether an angle in degrees is the one that a multiple of pi states."""
    angle, other = in_radians(degrees), formula(radians)
    if angle is None or other is None or not _constant(other) or not other.has(pi):
        return False
    return bool(_equal_constants(angle, other, degrees, radians))
