"""What supervised baselines imitate: correct rows, so many of a group, in any order; the request for a critique."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.supervised import CRITIQUE_REQUEST_VERSION, critique_request_messages, imitated_ids

ROWS = [("a", "g", 1.0), ("b", "g", 0.0), ("c", "g", 1.0), ("d", "h", None), ("e", "h", 1.0), ("f", "g", 1.0)]
PROMPTS = Path(__file__).parent.parent / "data" / "prompts"


def test_correct_rows_are_imitated_and_neither_wrong_ones_nor_those_that_nobody_judged() -> None:
    assert imitated_ids(ROWS, None, seed=1) == {"a", "c", "e", "f"}


def test_of_more_correct_rows_than_are_kept_the_seed_draws() -> None:
    draws = {frozenset(imitated_ids(ROWS, 1, seed=seed)) for seed in range(30)}
    assert draws == {frozenset({row, "e"}) for row in ("a", "c", "f")}


@given(st.permutations(ROWS), st.integers(1, 3), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(rows: list[tuple[str, str, float | None]], keep: int, seed: int) -> None:
    assert imitated_ids(rows, keep, seed) == imitated_ids(ROWS, keep, seed)


def test_the_request_for_a_critique_is_the_golden_one() -> None:
    (message,) = critique_request_messages("Ann has 3 boxes.\nHow many?", "3 + 4 = 7, so \\boxed{7}.")
    golden = PROMPTS / f"critique_request_v{CRITIQUE_REQUEST_VERSION}.txt"
    assert f"<{message['role']}>\n{message['content']}\n" == golden.read_text(encoding="utf-8")
    assert "(nothing was written)" in critique_request_messages("q", " ")[0]["content"]
    with pytest.raises(ValueError, match="blank"):
        critique_request_messages(" ", "a")
