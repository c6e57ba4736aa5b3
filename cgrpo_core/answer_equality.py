"""Whether an answer equals the ground truth: by spelling, as numbers, as words, by structure, and last as formulas.

What is decided earlier is decided for good where nothing later could know better: two numbers, words. Enumerations are
compared without order but with repetitions, tuples in order, both element by element with this same function.
"""

import re
from functools import lru_cache

from cgrpo_core.answer_parts import (
    SYMBOL,
    Part,
    bracketed,
    condition,
    elements,
    interval,
    is_words,
    matrix,
    part,
    plain_words,
    sign,
    split,
)
from cgrpo_core.closed_forms import same_value
from cgrpo_core.numerals import DECIMAL_COMMA, based_numeral, equal_numerals, numeral
from cgrpo_core.symbolic import as_set, equal_angles, equal_formulas, equal_sets, union

MAX_ELEMENTS = 64
DEGREE = re.compile(r"\s*\^\\circ\s*(?:[CF]|\\text\{\s*[CF]\s*\})?$")
CLOCK = re.compile(r"\d{1,2}:0\d")
NOT_EQUAL = re.compile(rf"({SYMBOL})\s*\\neq\s*([^<>=]+)")
SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
RELATION = re.compile(r"<|>|\\[lg]eq|\\neq|\\cup|\\infty|\\in(?![a-z])|\\mid|\||[\[\]]")


@lru_cache(maxsize=16384)
def equal(truth: str, answer: str) -> bool | None:
    """Return whether two normalised answers are the same; None when a comparison failed and none said yes."""
    if not answer or not truth:
        return False
    if truth == answer or _close_up(truth) == _close_up(answer):
        return True
    decided = _as_numbers(truth, answer)
    if decided is None:
        decided = _as_words(truth, answer)
    if decided is not None:
        return decided
    decided = _structured(truth, answer)
    if decided is None:
        decided = same_value(truth, answer)
    if decided is None and not _not_comparable(truth, answer):
        return equal_formulas(truth, answer)
    return bool(decided)


def _close_up(text: str) -> str:
    """Return `text` without spaces, except those between digits."""
    return SPACE.sub("", text)


def _as_numbers(truth: str, answer: str) -> bool | None:
    """Return the verdict if both are numbers or angles, else None."""
    if ("\\circ" in truth) != ("\\circ" in answer) and ("\\pi" in truth or "\\pi" in answer):
        degrees, radians = (truth, answer) if "\\circ" in truth else (answer, truth)
        return True if equal_angles(degrees, radians) else None
    one, other = numeral(DEGREE.sub("", truth)), numeral(DEGREE.sub("", answer))
    if one is not None and other is None and DECIMAL_COMMA.fullmatch(answer):
        other = numeral(answer.replace(",", "."))
        return equal_numerals(one, other) if other is not None else None
    if one is not None and other is not None:
        return equal_numerals(one, other)
    if CLOCK.fullmatch(truth) or CLOCK.fullmatch(answer):
        return False  # the time of day is no ratio, and is spelt in one way
    based, other_based = based_numeral(truth), based_numeral(answer)
    if based and other_based:
        return based[0] is not None and based[0] == other_based[0]
    return None


def _as_words(truth: str, answer: str) -> bool | None:
    """Return the verdict if one side is words: they are equal as words or not at all. None if neither is."""
    one, other = plain_words(truth), plain_words(answer)
    if one == other and (is_words(truth) or is_words(answer) or (len(one) == 1 and one.isalpha())):
        return True
    if is_words(truth) or is_words(answer):
        return one == sign(answer) or sign(truth) == other
    return None


def _structured(truth: str, answer: str) -> bool | None:
    """Return the verdict on two matrices, tuples or intervals, True for equal enumerations or sets, else None."""
    rows, other_rows = matrix(truth), matrix(answer)
    if rows and other_rows:
        return _equal_rows(rows, other_rows)
    if (rows or other_rows) and _equal_vector(rows or other_rows or [], answer if rows else truth):
        return True
    if (one := NOT_EQUAL.fullmatch(truth)) and (other := NOT_EQUAL.fullmatch(answer)):
        return one[1] == other[1] and equal(one[2], other[2])
    decided = _equal_intervals(truth, answer)
    if decided is None:
        decided = _equal_tuples(truth, answer)
    if decided is not None:
        return decided
    if _equal_enumerations(truth, answer):
        return True
    name, other_name = part(truth).name, part(answer).name
    single = len(elements(truth)) == len(elements(answer)) == 1
    if single and name and other_name and (name == other_name or "(" in name + other_name):
        return False  # math-verify would solve both as equations and compare what it finds
    related = RELATION.search(truth) or RELATION.search(answer)
    return True if related and _equal_as_sets(truth, answer) else None


def _equal_intervals(truth: str, answer: str) -> bool | None:
    """Return the verdict on two intervals of which at least one is written as an inequality, else None."""
    (name, one), (other_name, other) = interval(truth), interval(answer)
    if one == truth and other == answer:
        return None
    if name and other_name and name != other_name:
        return False
    pair, other_pair = bracketed(one), bracketed(other)
    return _equal_tuples(one, other) if pair and other_pair else None


def _equal_rows(rows: list[list[str]], others: list[list[str]]) -> bool:
    if [len(row) for row in rows] != [len(row) for row in others]:
        return False
    return all(
        equal(one, other)
        for row, others_ in zip(rows, others, strict=True)
        for one, other in zip(row, others_, strict=True)
    )


def _equal_vector(rows: list[list[str]], other: str) -> bool:
    """Return whether a matrix of one column or row is the tuple `other`."""
    pair = bracketed(part(other).value)
    if pair is None or pair[0] + pair[2] != "()" or not (len(rows) == 1 or all(len(row) == 1 for row in rows)):
        return False
    return _in_order([entry for row in rows for entry in row], pair[1])


def _in_order(ones: list[str], others: list[str]) -> bool:
    return len(ones) == len(others) and all(equal(one, other) for one, other in zip(ones, others, strict=True))


def _equal_tuples(truth: str, answer: str) -> bool | None:
    """Return the verdict on two tuples or intervals, True for a tuple and its elements without brackets, else None."""
    one, other = bracketed(part(truth).value), bracketed(part(answer).value)
    if one and other:
        return one[0] == other[0] and one[2] == other[2] and _in_order(one[1], other[1])
    pair, text = (one, answer) if one else (other, truth)
    if pair is None or pair[0] + pair[2] != "()":
        return None
    inner = text[2:-2] if text.startswith("\\{") and text.endswith("\\}") else text
    return _in_order(pair[1], [part(piece).value for piece in split(inner)]) or None


def _equal_enumerations(truth: str, answer: str) -> bool:
    ones, others = elements(truth), elements(answer)
    if len(ones) != len(others) or len(ones) > MAX_ELEMENTS:
        return False
    parts, other_parts = [part(piece) for piece in ones], [part(piece) for piece in others]
    if len(ones) == 1 and parts[0].value == truth and other_parts[0].value == answer:
        return False  # neither enumeration nor name: nothing was taken apart
    return _matched(parts, other_parts)


def _matched(parts: list[Part], others: list[Part]) -> bool:
    """Return whether each part has a partner of its own among the others."""
    left = list(others)
    for one in parts:
        partner = next((other for other in left if _equal_parts(one, other)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _equal_parts(one: Part, other: Part) -> bool:
    """A name is only compared with a name: `x = 4` is 4 and is not `y = 4`."""
    if one.name is None or other.name is None:
        return bool(equal(one.value, other.value))
    if one.name.lower() == other.name.lower():
        return bool(equal(one.value, other.value))
    renamed = _renamed(one, other)
    return renamed is not None and bool(equal(one.value, renamed))


def _renamed(one: Part, other: Part) -> str | None:
    """Return the value of `f(m) = 2m` in the variable of `f(n) = 2n`; None if the two are not so related."""
    pattern = re.compile(r"([A-Za-z])\(([A-Za-z])\)")
    first, second = pattern.fullmatch(one.name or ""), pattern.fullmatch(other.name or "")
    if not first or not second or first[1] != second[1] or first[2] in other.value:
        return None
    return re.sub(rf"(?<![A-Za-z\\]){second[2]}(?![A-Za-z])", first[2], other.value)


def _equal_as_sets(truth: str, answer: str) -> bool:
    """Return whether both are the same set of real numbers: interval, inequality, union, `{x | ...}`."""
    one, other = _real_set(truth), _real_set(answer)
    return one is not None and other is not None and equal_sets(one, other)


@lru_cache(maxsize=4096)
def _real_set(text: str) -> object | None:
    inner = condition(text)
    inner = re.sub(r"^\\?[A-Za-z]+\s*\\in(?![a-z])\s*", "", inner)
    pieces = [piece for joined in re.split(r"\\cup", inner) for piece in split(joined, ";")]
    if len(pieces) > 1:
        sets = [_real_set(piece) for piece in pieces]
        return None if any(one is None for one in sets) else union(list(sets))
    if inner.startswith("\\{") or RELATION.search(inner) or bracketed(inner):
        return as_set(inner)
    item = part(inner)
    return as_set(f"\\{{{item.value}\\}}") if item.name and numeral(item.value) else None


def _not_comparable(truth: str, answer: str) -> bool:
    """Return whether formulas are not to be compared, because math-verify drops what tells the two apart.

    An enumeration is a set to it, in which a repeated element counts once, and `2012_3` is 2012.
    """
    ones, others = elements(truth), elements(answer)
    if max(len(ones), len(others)) > 1 and not (bracketed(truth) or bracketed(answer)):
        return not (RELATION.search(truth) or RELATION.search(answer))
    based = based_numeral(truth) or based_numeral(answer)
    return based is not None and truth.partition("_")[0] != answer.partition("_")[0]
