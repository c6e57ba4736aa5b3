"""The fast path for numbers: math-verify's verdicts where it applies, and no number equals another one."""

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from cgrpo_core.answer_forms import normalised
from cgrpo_core.numerals import ANSWER_DIGITS, TRUTH_DIGITS, Numeral, equal_numerals, numeral, rounds_to

WHOLE = st.integers(-9999, 9999)


def read(text: str) -> Numeral:
    number = numeral(normalised(text))
    assert number is not None, text
    return number


@st.composite
def numerals(draw: st.DrawFn) -> str:
    """A number as models write it; decimals have at most four places, so that six decimals tell them apart."""
    number = draw(WHOLE)
    form = draw(st.sampled_from(["integer", "separated", "decimal", "fraction", "slash", "percent", "zeros"]))
    below = draw(st.integers(2, 60))
    match form:
        case "separated":
            return f"{number:,}"
        case "decimal":
            return f"{number / 10 ** draw(st.integers(1, 4)):.4f}"
        case "fraction":
            return rf"\frac{{{number}}}{{{below}}}"
        case "slash":
            return f"{number}/{below}"
        case "percent":
            return rf"{number}\%"
        case "zeros":
            return f"{number}.0"
    return str(number)


@given(numerals(), numerals())
@settings(max_examples=300, deadline=None)
def test_the_fast_path_gives_the_verdicts_of_math_verify(truth: str, answer: str) -> None:
    one, other = read(truth), read(answer)
    assume(not rounds_to(other.value, one, TRUTH_DIGITS) and not rounds_to(one.value, other, ANSWER_DIGITS))
    assume(one.percent == other.percent)  # of which math-verify compares some pairs as they stand, some divided
    slow = verify(
        parse(rf"\boxed{{{truth}}}", parsing_timeout=None),
        parse(rf"\boxed{{{answer}}}", parsing_timeout=None),
        timeout_seconds=None,
    )
    assert equal_numerals(one, other) == slow


@given(numerals(), numerals())
def test_equality_of_numerals_is_that_of_their_values_up_to_rounding(truth: str, answer: str) -> None:
    one, other = read(truth), read(answer)
    assert equal_numerals(one, one)
    if one.percent == other.percent and equal_numerals(one, other):
        assert abs(one.value - other.value) <= Fraction(5, 1000) * max(abs(one.value), Fraction(1, 1000))


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("4.5e33", Fraction(45) * 10**32),
        (r"4.5 \times 10^{33}", Fraction(45) * 10**32),
        (r"$4.5\cdot10^{33}$", Fraction(45) * 10**32),
        ("1.6e-19", Fraction(16, 10**20)),
        ("025", Fraction(25)),
        ("142.0", Fraction(142)),
        ("1,000,000", Fraction(10**6)),
        (r"14{,}916", Fraction(14916)),
        (r"11,\! 111,\! 111", Fraction(11111111)),
        ("1 000", Fraction(1000)),
        (r"1\frac{9}{10}", Fraction(19, 10)),
        ("1 1/2", Fraction(3, 2)),
        (r"-\dfrac{10}{9}", Fraction(-10, 9)),
        (r"\frac12", Fraction(1, 2)),
        ("$13/4$.", Fraction(13, 4)),
        (r"\$16386.17", Fraction(1638617, 100)),
        ("12.5 dollars", Fraction(25, 2)),
        (r"5.4 \text{ square units}", Fraction(27, 5)),
        (r"864 \mbox{ inches}^2", Fraction(864)),
        ("3 million", Fraction(3 * 10**6)),
        ("10^3", Fraction(1000)),
        ("٤٢", Fraction(42)),
        ("４２", Fraction(42)),
        ("−7", Fraction(-7)),
    ],
)
def test_a_number_is_read_however_it_is_written(written: str, value: Fraction) -> None:
    assert read(written).value == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "2m", "3x", "7+4", "(3,331)", "②③", "1,2", "3!", "1..2", "10^{500}"])
def test_what_is_no_number_is_not_read_as_one(text: str) -> None:
    assert numeral(normalised(text)) is None


def test_a_decimal_stands_for_an_exact_value_only_correctly_rounded_and_with_digits_enough() -> None:
    assert equal_numerals(read("0.458"), read(r"\frac{27}{59}"))  # 0.45762...: the truth was rounded to three digits
    assert not equal_numerals(read("0.46"), read(r"\frac{27}{59}"))
    assert equal_numerals(read(r"\frac{27}{59}"), read("0.4576"))
    assert not equal_numerals(read(r"\frac{27}{59}"), read("0.458"))  # an answer of three digits is coarse
    assert not equal_numerals(read(r"\frac{27}{59}"), read("0.4577"))  # wrongly rounded
    assert not equal_numerals(read("2.65"), read("2.653"))  # two decimals are not rounded to each other
    assert not equal_numerals(read("5040"), read("5042.02"))


def test_small_numbers_are_told_apart_as_large_ones_are() -> None:
    assert not equal_numerals(read("0.0000001"), read("0.0000003"))
    assert not equal_numerals(read("1.6e-19"), read("0"))
    assert equal_numerals(read("0.0000001"), read("1e-7"))


def test_only_a_number_with_the_sign_is_also_a_hundredth() -> None:
    assert equal_numerals(read(r"62.5\%"), read("0.625"))
    assert equal_numerals(read(r"62.5\%"), read("62.5"))
    assert not equal_numerals(read("62.5"), read("0.625"))
