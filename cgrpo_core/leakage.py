"""Answer leakage: is a refinement right because it works, or because its critique stated the answer?

A critique that names the ground truth makes a right answer cheap: it can be copied. What can be measured on the text
alone is whether the reasoning agrees with the answer. The calculations of a text are its equalities with an operation
on one side (`4 * 5 = 20`); restating the answer (`x = 20`, `the answer is 20`) is none.

    agrees        some calculation has the ground truth as its result
    disagrees     there are calculations, and none of them has it: something else was worked out
    no_reasoning  there is no calculation

The share of `disagrees` and `no_reasoning` among right refinements is an upper bound of leakage: reasoning in words, or
in steps without an equals sign, counts as none. Compare it with the arm whose critiques do not name the answer
(`critique.kind=indicative`), where the same share is what the model's habits alone give. Neither paper nor release
measures this.
"""

import re
from itertools import pairwise
from typing import Literal

Reasoning = Literal["agrees", "disagrees", "no_reasoning"]

MAX_CHARACTERS = 20_000
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|,|;|!|quad|qquad)|\\[()\[\]]|[$\s,]|\\boxed|\\text")
_OPERATION = re.compile(r"[-+*/^×÷·]|\\(?:times|div|cdot|frac|dfrac|sqrt|binom)")
_WORDS = re.compile(r"[A-Za-z]{2,}")
_ENDS = re.compile(r"[^0-9A-Za-z)}\]%!]+$")


def reasoning(text: str, ground_truth: str) -> Reasoning:
    """Return whether the calculations in `text` lead to `ground_truth`. Linear in the length of the text."""
    truth = _plain(ground_truth)
    found = False
    for line in re.split(r"[\n;]|\.\s|\\\\", text[-MAX_CHARACTERS:]):
        sides = line.split("=")
        for left, right in pairwise(sides):
            if not _is_calculation(left):
                continue
            found = True
            if truth and _plain(_result(right)) == truth:
                return "agrees"
    return "disagrees" if found else "no_reasoning"


def _is_calculation(side: str) -> bool:
    """Tell whether a side has an operation between two operands; a sign in front of a number is none."""
    formula = _last_formula(side)
    return bool(_OPERATION.search(formula.lstrip("-+ $("))) and any(mark.isdigit() for mark in formula)


def _last_formula(side: str) -> str:
    """Return what follows the last word: of `so we get 4 * 5`, `4 * 5`; LaTeX commands are no words."""
    end = 0
    for match in _WORDS.finditer(side):
        if match.start() == 0 or side[match.start() - 1] != "\\":
            end = match.end()
    return side[end:]


def _result(side: str) -> str:
    """Return what stands before the first word: of `20 horses`, `20`."""
    for match in _WORDS.finditer(side):
        if match.start() == 0 or side[match.start() - 1] != "\\":
            return side[: match.start()]
    return side


def _plain(text: str) -> str:
    """Return a formula without spaces, thousands commas, dollar signs, boxes and trailing marks."""
    bare = _ENDS.sub("", _DROPPED.sub("", text)).removesuffix(".0")
    while len(bare) > 1 and bare[0] in "{(" and bare[-1] in "})" and not any(mark in "{}()" for mark in bare[1:-1]):
        bare = bare[1:-1]
    return bare
