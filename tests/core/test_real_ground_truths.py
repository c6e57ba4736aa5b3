"""Ground truths of MATH-500: each is right against itself, and wrong against another and with one digit changed.

Read from ../shared/data beside the repository; skipped where that is not there.
"""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from cgrpo_core.verifiers import judge

FILE = Path(__file__).parents[3] / "shared" / "data" / "math500.jsonl"
SAMPLE = 120


@pytest.fixture(scope="module")
def truths() -> list[str]:
    if not FILE.is_file():
        pytest.skip(f"{FILE} is not there")
    found = sorted({str(json.loads(line)["answer"]) for line in FILE.read_text(encoding="utf-8").splitlines()})
    return random.Random(17).sample(found, SAMPLE)


def test_each_is_right_against_itself(truths: list[str]) -> None:
    assert [truth for truth in truths if not judge(f"So it is $\\boxed{{{truth}}}$.", truth).correct] == []


def test_none_is_right_with_one_digit_changed(truths: list[str]) -> None:
    draw, taken = random.Random(18), []
    for truth in truths:
        places = [match.start() for match in re.finditer(r"\d", truth)]
        if not places or re.search(r"_\d|text|mbox", truth):  # units are dropped
            continue
        place = draw.choice(places)
        digit = draw.choice([digit for digit in "0123456789" if digit != truth[place]])
        changed = truth[:place] + digit + truth[place + 1 :]
        if judge(f"\\boxed{{{changed}}}", truth).correct:
            taken.append((truth, changed))
    assert taken == []


def test_none_is_right_against_another(truths: list[str]) -> None:
    pairs = pairwise(truths)
    assert [(one, other) for one, other in pairs if judge(f"\\boxed{{{one}}}", other).correct] == []
