"""Each moment of an iteration belongs to one part, and the parts add up to all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.time_bar import PARTS, draw, shares


def test_a_moment_at_which_an_engine_works_is_the_engine_s() -> None:
    spans = [
        (0.0, 10.0, "sampling"),
        (8.0, 14.0, "verification"),  # two seconds beside the engine, four alone
        (15.0, 20.0, "training"),  # after one second of nothing
        (19.0, 20.0, "other stages"),
    ]
    found = {part: seconds for part, seconds in shares(spans).items() if seconds}
    assert found == {"sampling": 10.0, "verification": 4.0, "between stages": 1.0, "training": 5.0}


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e4), st.sampled_from(PARTS[:-1])), max_size=12).map(
        lambda rows: [(start, start + length, part) for start, length, part in rows]
    )
)
def test_the_parts_add_up_from_the_first_start_to_the_last_end(spans: list[tuple[float, float, str]]) -> None:
    real = [span for span in spans if span[1] > span[0]]
    wall = max(end for _, end, _ in real) - min(start for start, _, _ in real) if real else 0.0
    assert sum(shares(spans).values()) == pytest.approx(wall, abs=1e-6)


def test_the_bar_shows_what_took_time_and_nothing_else() -> None:
    lines = draw({**dict.fromkeys(PARTS, 0.0), "sampling": 30.0, "training": 10.0})
    assert [line.split()[0] for line in lines] == ["sampling", "training"]
    assert lines[0].count("█") == 3 * lines[1].count("█") == 30
