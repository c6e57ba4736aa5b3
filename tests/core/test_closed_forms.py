"""The fast path for formulas gives the verdicts of math-verify, or none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrpo_core.closed_forms import same_value
from cgrpo_core.symbolic import equal_formulas

LEAF = st.sampled_from(["2", "3", "5", "x", "y", r"\pi", "7", "a"])


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(parts, parts)
    return st.one_of(
        pairs.map(lambda p: f"({p[0]} + {p[1]})"),
        pairs.map(lambda p: f"({p[0]} - {p[1]})"),
        pairs.map(lambda p: rf"{p[0]} \cdot {p[1]}"),
        pairs.map(lambda p: rf"\frac{{{p[0]}}}{{{p[1]}}}"),
        parts.map(lambda p: rf"\sqrt{{{p}}}"),
        parts.map(lambda p: f"({p})^{{2}}"),
    )


FORMULA = st.recursive(LEAF, combined, max_leaves=5)


@given(FORMULA, FORMULA)
@settings(max_examples=60, deadline=None)
def test_two_formulas_are_equal_or_not_as_for_math_verify(one: str, other: str) -> None:
    fast = same_value(one, other)
    assert fast is None or fast == bool(equal_formulas(one, other))


@given(FORMULA, st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_a_formula_is_itself_written_otherwise_and_not_itself_and_something(formula: str, number: int) -> None:
    assert same_value(formula, rf"\frac{{{number} \cdot ({formula})}}{{{number}}}") in (True, None)
    assert same_value(formula, f"({formula}) + {number}") in (False, None)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("2x^2-3x+1", "(2x-1)(x-1)", True),
        ("2x^2-3x+1", "(2x-1)(x+1)", False),
        (r"3\sqrt{2}", r"\sqrt{18}", True),
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", True),
        (r"\sqrt[3]{8}x", "2x", True),
        (r"\sqrt{x^{2}}", "x", False),
        (r"\frac{9}{4}\pi", r"\frac{9\pi}{4}", True),
        ("x+y-y", "x", True),
        (r"\pi R^2", r"\pi r^{2}", True),
        ("R r", "r^2", False),
        ("10^{20}+1", "10^{20}", False),
        ("0.25x", r"\frac{x}{4}", True),
        ("0.333x", r"\frac{x}{3}", None),
        ("1/2x", r"\frac{x}{2}", None),
        (r"1\frac{1}{2}", "1.5", None),
        ("f(x)", "fx", None),
        ("x^23", "x^{23}", None),
        (r"\sin x", r"\sin x", None),
        ("x=1", "1", None),
        ("10^{10^{10}}", "1", None),
    ],
)
def test_what_is_not_read_or_could_be_read_in_two_ways_is_left_to_sympy(
    one: str, other: str, verdict: bool | None
) -> None:
    assert same_value(one, other) is verdict
