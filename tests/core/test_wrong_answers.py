"""A wrong answer stays wrong: right answers of every shape, changed in one number, and never taken for right."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from cgrpo_core.verifiers import judge

NUMBER = st.integers(-60, 60)
OTHER = st.integers(1, 9)  # what is added to one number
WRITTEN: dict[str, Callable[[list[int]], str]] = {
    "integer": lambda n: f"{n[0]}",
    "boxed": lambda n: rf"So it is \boxed{{{n[0]}}}.",
    "sentence": lambda n: f"The answer is {n[0]}.",
    "root": lambda n: rf"{n[0]}\sqrt{{2}} + {n[1]}",
    "multiple of pi": lambda n: rf"\boxed{{{n[0]}\pi}}",
    "tuple": lambda n: f"({n[0]}, {n[1]}, {n[2]})",
    "named": lambda n: f"x = {n[0]}, y = {n[1]}",
    "matrix": lambda n: rf"\boxed{{\begin{{pmatrix}} {n[0]} & {n[1]} \\ {n[2]} & {n[3]} \end{{pmatrix}}}}",
    "polynomial": lambda n: rf"\boxed{{{n[0]}x^2 + {n[1]}x + {n[2]}}}",
    "power": lambda n: rf"\boxed{{x^{{{abs(n[0]) + 2}}}}}",
    "equation": lambda n: f"y = {n[0]}x + {n[1]}",
    "unit": lambda n: rf"{n[0]} \text{{ cm}}^2",
    "percent": lambda n: rf"{n[0]}\%",
    "interval": lambda n: rf"[{n[0]}, {n[0] + abs(n[1]) + 30})",
    "inequality": lambda n: rf"x \leq {n[0]}",
    "scientific": lambda n: rf"\boxed{{{n[0]}.5 \times 10^{{{abs(n[1])}}}}}",
}
CHANGED = {"root": 2, "tuple": 3, "named": 2, "matrix": 4, "polynomial": 3, "equation": 2}


def unboxed(text: str) -> str:
    return text.removeprefix(r"\boxed{").removesuffix("}") if text.startswith(r"\boxed{") else text


@given(st.sampled_from(sorted(WRITTEN)), st.lists(NUMBER, min_size=4, max_size=4), OTHER, st.integers(0, 3))
@settings(max_examples=250, deadline=None)
def test_a_right_answer_is_right_and_with_one_other_number_wrong(
    form: str, numbers: list[int], change: int, place: int
) -> None:
    changed = list(numbers)
    where = place % CHANGED.get(form, 1)
    if form == "power":  # the exponent is of the absolute value
        numbers[0] = changed[0] = abs(numbers[0])
    changed[where] += change
    truth = str(numbers[0]) if form in ("boxed", "sentence") else unboxed(WRITTEN[form](numbers))
    assert judge(WRITTEN[form](numbers), truth).correct, (truth, WRITTEN[form](numbers))
    assert not judge(WRITTEN[form](changed), truth).correct, (truth, WRITTEN[form](changed))


@given(st.lists(NUMBER, min_size=2, max_size=6), st.randoms(use_true_random=False), OTHER)
@settings(max_examples=100, deadline=None)
def test_an_enumeration_is_right_in_any_order_and_wrong_with_one_more_less_or_other(
    numbers: list[int], random, change: int
) -> None:
    def enumerated(values: list[int]) -> str:
        return r"\boxed{" + ", ".join(map(str, values)) + "}"

    truth = ", ".join(map(str, numbers))
    shuffled = list(numbers)
    random.shuffle(shuffled)
    assert judge(enumerated(shuffled), truth).correct
    other = list(shuffled)
    other[0] += change
    if sorted(other) != sorted(numbers):
        assert not judge(enumerated(other), truth).correct
    assert not judge(enumerated(shuffled[1:]), truth).correct
    assert not judge(enumerated([*shuffled, shuffled[0]]), truth).correct


@given(NUMBER, st.integers(1, 40), st.sampled_from(["()", "[]", "(]", "[)"]), st.sampled_from(["()", "[]", "(]", "[)"]))
@settings(max_examples=60, deadline=None)
def test_an_interval_is_its_inequality_and_no_other_interval(low: int, width: int, brackets: str, others: str) -> None:
    high = low + width
    signs = ["<" if bracket in "()" else r"\leq" for bracket in brackets]
    truth = f"{brackets[0]}{low}, {high}{brackets[1]}"
    assert judge(rf"\boxed{{{low} {signs[0]} x {signs[1]} {high}}}", truth).correct
    assert judge(rf"\boxed{{\{{x \mid {low} {signs[0]} x {signs[1]} {high}\}}}}", truth).correct
    if others != brackets:
        assert not judge(rf"\boxed{{{others[0]}{low}, {high}{others[1]}}}", truth).correct
    assert not judge(rf"\boxed{{{low} {signs[0]} x {signs[1]} {high + 1}}}", truth).correct
