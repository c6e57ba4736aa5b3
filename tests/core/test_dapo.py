"""DAPO: which groups teach, what length costs, and that no problem is asked twice whatever is replaced."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.dapo import overlong_penalty, teaches
from cgrpo_core.luffy import ended
from cgrpo_core.schedule import chunk_slots, replacement_slot


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1.0, 0.0], True), ([1.0, 1.0], False), ([0.0, 0.0, None], False), ([1.0, None, 0.0], True), ([None], False)],
)
def test_a_group_teaches_when_its_judged_rewards_differ(rewards: list[float | None], expected: bool) -> None:
    assert teaches(rewards) is expected
    assert not teaches([])


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (30000, -1.0)]
)
def test_the_paper_s_penalty_with_its_limit_of_20480_and_its_buffer_of_4096(tokens: int, expected: float) -> None:
    assert overlong_penalty(tokens, limit=20480, share=0.2, largest=1.0) == pytest.approx(expected, abs=1e-12)


@given(
    tokens=st.integers(0, 10_000),
    limit=st.integers(1, 10_000),
    share=st.floats(0.001, 1.0),
    largest=st.floats(0.0, 10.0),
)
def test_a_penalty_is_within_its_bounds_and_never_smaller_for_more_tokens(
    tokens: int, limit: int, share: float, largest: float
) -> None:
    penalty = overlong_penalty(tokens, limit=limit, share=share, largest=largest)
    assert -largest <= penalty <= 0.0
    assert overlong_penalty(tokens + 1, limit=limit, share=share, largest=largest) <= penalty + 1e-12


@given(width=st.integers(1, 7), chunks=st.integers(1, 3), passes=st.integers(0, 3))
def test_no_slot_is_asked_twice_whichever_prompts_are_replaced(width: int, chunks: int, passes: int) -> None:
    asked = []
    for iteration in (1, 2, 3):
        for chunk in range(chunks):
            slots = list(chunk_slots(iteration, width, chunk, chunks, passes + 1))
            for _ in range(passes + 1):
                asked += slots
                slots = [replacement_slot(slot, width) for slot in slots]
    assert sorted(asked) == list(range(3 * width * (passes + 1)))


def test_a_solution_is_ended_unless_it_was_cut() -> None:
    assert ended([4, 5], 2, 3) == (4, 5, 2)
    assert ended([4, 5, 6], 2, 3) == (4, 5, 6)
    assert ended([4, 5, 6, 7], 2, 3) == (4, 5, 6)
