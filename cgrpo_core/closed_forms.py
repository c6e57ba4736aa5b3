"""Formulas that can be compared without sympy: sums, products, quotients, powers and roots of numbers and variables.

The second fast path: it spares the LaTeX parser and `simplify`, which take milliseconds. Both formulas are computed
with 70 digits at the same points; what is equal to 45 digits at each is equal, what differs by more than 1e-35 is not,
and anything else, as any formula with a sign that is not listed here or that can be read in two ways, is left to sympy.
tests/core/test_closed_forms.py compares its verdicts with math-verify's on random formulas.
"""

import re
from collections.abc import Mapping
from decimal import Context, Decimal, DecimalException, localcontext
from functools import lru_cache
from typing import Any

TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<name>[A-Za-z](?:_\{[A-Za-z0-9]+\})?|\\(?:alpha|beta|gamma|theta|lambda|mu)\b)"
    r"|(?P<pi>\\pi(?![A-Za-z]))|(?P<frac>\\frac)|(?P<root>\\sqrt)|(?P<times>\\cdot|\\times|\*)|(?P<over>/|\\div)"
    r"|(?P<sign>[+-])|(?P<power>\^)|(?P<open>[({\[])|(?P<close>[)}\]]))"
)
MAX_LENGTH = 300
MAX_POWER = 64
MAX_SIZE = Decimal(10) ** 300
PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592307816406286209")
E = Decimal("2.71828182845904523536028747135266249775724709369995957496696762772407663035354759")
PRECISION = Context(prec=70)
EQUAL, DIFFERENT = Decimal("1e-45"), Decimal("1e-35")
NEAR_ZERO = Decimal("1e-15")  # so small a value may be what rounding left of 0
POINTS = ((7, 3), (13, 11), (-17, 5), (9, 23), (-8, 29), (31, 2), (41, 37), (-43, 19))
ENOUGH_POINTS = 3
FUNCTION_NAMES = frozenset("fghFGHPpQqTW")  # before a bracket they may be functions

ARGUMENT = re.compile(r"\s*[\w.]+\s*\)")  # `x(2)` may be a function's value

Node = tuple[Any, ...]


class NotRead(Exception):
    """The formula holds something that is not read here, or that can be read in two ways."""


class Undefined(Exception):
    """The formula has no real value at the point."""


def same_value(truth: str, answer: str) -> bool | None:
    """Return whether two normalised formulas are equal; None when sympy has to be asked.

    Numbers with a decimal point are only found equal here: sympy's way knows when one is a rounding of the other.
    """
    one, other = _parsed(truth), _parsed(answer)
    if one is None or other is None:
        return None
    (tree, names), (other_tree, other_names) = one, other
    renamed = _one_case(names, other_names)
    if renamed is None:
        return False
    try:
        verdict = _compared(tree, other_tree, sorted(set(renamed.values())), renamed)
    except NotRead:
        return None
    return None if verdict is False and ("." in truth or "." in answer) else verdict


def _one_case(names: frozenset[str], others: frozenset[str]) -> dict[str, str] | None:
    """Return what each name is called: math-verify takes `R` for `r`, which is right unless a formula holds both."""
    if names == others:
        return {name: name for name in names}
    lowered = [{name.lower() for name in group} for group in (names, others)]
    if len(lowered[0]) < len(names) or len(lowered[1]) < len(others):
        return None if lowered[0] == lowered[1] else {name: name for name in names | others}
    return {name: name.lower() for name in names | others}


def _compared(one: Node, other: Node, names: list[str], renamed: Mapping[str, str]) -> bool | None:
    agreed = 0
    points = POINTS if names else POINTS[:1]
    with localcontext(PRECISION):
        for place in range(len(points)):
            values = {
                name: Decimal(points[(place + offset) % len(points)][0]) / points[(place + offset) % len(points)][1]
                + offset
                for offset, name in enumerate(names)
            }
            at = {name: values[called] for name, called in renamed.items()}
            first, second = _value_or_none(one, at), _value_or_none(other, at)
            if first is None and second is None:
                continue
            if first is None or second is None:
                return None
            difference = abs(first - second)
            size = max(abs(first), abs(second))
            if 0 < size < NEAR_ZERO:
                return None
            if difference > DIFFERENT * size:
                return False
            if difference > EQUAL * size:
                return None
            agreed += 1
    return True if agreed >= (ENOUGH_POINTS if names else 1) else None


def _value_or_none(node: Node, at: Mapping[str, Decimal]) -> Decimal | None:
    try:
        value = _value(node, at)
    except (Undefined, DecimalException):
        return None
    return value if value.is_finite() else None


def _value(node: Node, at: Mapping[str, Decimal]) -> Decimal:
    kind = node[0]
    if kind == "number":
        return Decimal(node[1])
    if kind == "name":
        return at[node[1]]
    values = [_value(child, at) for child in node[1:]]
    if kind == "+":
        return values[0] + values[1]
    if kind == "-":
        return -values[0]
    if kind == "*":
        return values[0] * values[1]
    if kind == "/":
        if values[1] == 0:
            raise Undefined
        return values[0] / values[1]
    return _power(values[0], values[1])


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    whole = exponent == exponent.to_integral_value()
    if (base == 0 and exponent <= 0) or (base < 0 and not whole):
        raise Undefined
    if abs(exponent) > MAX_POWER:
        raise NotRead
    value = base ** int(exponent) if whole else base**exponent
    if abs(value) > MAX_SIZE:
        raise NotRead
    return value


@lru_cache(maxsize=8192)
def _parsed(text: str) -> tuple[Node, frozenset[str]] | None:
    if len(text) > MAX_LENGTH:
        return None
    try:
        parser = _Parser(text)
        tree = parser.sum()
        if parser.kind is not None:
            return None
    except (NotRead, RecursionError):
        return None
    return tree, frozenset(parser.names)


class _Parser:
    """A formula from left to right; `kind` and `text` are of the token at hand, None at the end."""

    def __init__(self, text: str) -> None:
        self.source, self.place, self.names = text.strip(), 0, set[str]()
        self.kind: str | None = None
        self.text = ""
        self.advance()

    def advance(self) -> None:
        if self.place >= len(self.source):
            self.kind, self.text = None, ""
            return
        match = TOKEN.match(self.source, self.place)
        if match is None:
            raise NotRead
        self.kind, self.text, self.place = match.lastgroup, match.group().strip(), match.end()

    def sum(self) -> Node:
        negative = self.kind == "sign" and self.text == "-"
        if self.kind == "sign":
            self.advance()
        tree = self.product()
        tree = ("-", tree) if negative else tree
        while self.kind == "sign":
            negative = self.text == "-"
            self.advance()
            term = self.product()
            tree = ("+", tree, ("-", term) if negative else term)
        return tree

    def product(self) -> Node:
        (tree, after_number), divided = self.power(), False
        while self.kind is not None and self.kind not in ("sign", "close"):
            if self.kind in ("times", "over"):
                operator = "*" if self.kind == "times" else "/"
                self.advance()
                negative = self.kind == "sign" and self.text == "-"
                if negative:
                    self.advance()
                factor, after_number = self.power()
                tree = (operator, tree, ("-", factor) if negative else factor)
                divided = operator == "/"
                continue
            # `1/2x`, `2 3` and `1\\frac{1}{2}` can be read in two ways
            if divided or (after_number and self.kind in ("number", "frac")):
                raise NotRead
            factor, after_number = self.power()
            tree = ("*", tree, factor)
        return tree

    def power(self) -> tuple[Node, bool]:
        """Return a factor, and whether it is a bare number."""
        is_number = self.kind == "number"
        tree = self.atom()
        if self.kind == "power":
            self.advance()
            if self.kind == "number" and len(self.text) > 1:
                raise NotRead  # `x^23`
            if self.kind not in ("number", "name", "open", "pi"):
                raise NotRead
            tree = ("^", tree, self.atom())
            if self.kind == "power":
                raise NotRead
            return tree, False
        return tree, is_number

    def atom(self) -> Node:
        kind, text = self.kind, self.text
        self.advance()
        match kind:
            case "number":
                return ("number", text)
            case "pi":
                return ("number", PI)
            case "name":
                return self.named(text)
            case "frac":
                return ("/", self.group("{"), self.group("{"))
            case "root":
                index = self.group("[") if self.text == "[" else ("number", "2")
                return ("^", self.group("{"), ("/", ("number", "1"), index))
            case "open" if text != "[":
                return self.closed(text)
        raise NotRead

    def named(self, text: str) -> Node:
        if text == "e":
            return ("number", E)
        if text == "i" or (self.text == "(" and (text in FUNCTION_NAMES or ARGUMENT.match(self.source, self.place))):
            raise NotRead
        self.names.add(text)
        return ("name", text)

    def group(self, opening: str) -> Node:
        if self.text != opening:
            raise NotRead
        self.advance()
        return self.closed(opening)

    def closed(self, opening: str) -> Node:
        tree = self.sum()
        if self.text != {"(": ")", "{": "}", "[": "]"}[opening]:
            raise NotRead
        self.advance()
        return tree
