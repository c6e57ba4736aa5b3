"""The figures of a benchmark, against brute force over every subset of the samples."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrpo_core.evaluation import Measured, accuracy, bootstrap, maj_at_k, powers, summarise, votes
from cgrpo_core.metrics import pass_at_k
from cgrpo_core.records import EvalResult

MEASURED = Measured(benchmark="b", policy_version=3, template="boxed", temperature=0.6, samples_per_problem=4)


def result(
    problem_id: str, index: int, *, correct: bool = False, answer: str | None = "7", status: str = "ok", tokens: int = 2
) -> EvalResult:
    return EvalResult(
        problem_id=problem_id,
        policy_version=3,
        sample_index=index,
        benchmark="b",
        template="boxed",
        temperature=0.6,
        correct=correct,
        status=status,
        answer=answer,
        text="",
        tokens=tokens,
        finish_reason="length" if tokens > 5 else "stop",
    )


def won(ballots: tuple[str, ...]) -> float:
    """The chance that "right" wins a vote; a blank does not vote, a tie is a fair draw."""
    counts = {name: ballots.count(name) for name in ballots if name}
    most = max(counts.values(), default=0)
    top = [name for name, count in counts.items() if count == most]
    return 1 / len(top) if "right" in top else 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["right", "a", "b", "c", ""]), min_size=1, max_size=9), st.data())
def test_maj_at_k_is_the_mean_over_every_subset(ballots: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(ballots)))
    wrong = tuple(sorted((ballots.count(name) for name in "abc" if name in ballots), reverse=True))
    expected = fmean(won(subset) for subset in combinations(ballots, k))
    assert maj_at_k((ballots.count("right"), wrong, ballots.count("")), k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_mean_over_every_subset(correct: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(correct)))
    expected = fmean(any(subset) for subset in combinations(correct, k))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(expected)


@given(st.integers(0, 40), st.lists(st.integers(1, 40), max_size=4), st.integers(0, 20))
def test_one_vote_is_one_sample(correct: int, wrong: list[int], silent: int) -> None:
    samples = correct + sum(wrong) + silent
    if samples:
        assert maj_at_k((correct, tuple(wrong), silent), 1) == pytest.approx(correct / samples)


def test_a_tie_is_broken_by_a_fair_draw() -> None:
    assert maj_at_k((1, (1,), 0), 2) == 0.5
    assert maj_at_k((1, (1, 1), 0), 3) == pytest.approx(1 / 3)
    assert maj_at_k((2, (2, 1), 0), 5) == 0.5


def test_hundreds_of_samples_neither_overflow_nor_take_long() -> None:
    assert maj_at_k((400, (300, 200, 100), 0), 1000) == 1.0
    assert 0.5 < maj_at_k((60, tuple([2] * 98), 0), 128) <= 1.0


def test_more_votes_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="not defined"):
        maj_at_k((1, (), 0), 2)


def test_right_answers_vote_together_whatever_their_spelling_and_wrong_ones_by_text() -> None:
    ballot = votes(
        [
            result("p", 0, correct=True, answer="1/2"),
            result("p", 1, correct=True, answer="0.5"),
            result("p", 2, answer="X = 3"),
            result("p", 3, answer="x=3"),
            result("p", 4, answer="4"),
            result("p", 5, answer=None, status="unparsable"),
            result("p", 6, answer=None, status="timeout"),
        ]
    )
    assert ballot == (2, (2, 1), 1)


def test_what_was_not_judged_is_neither_right_nor_wrong() -> None:
    rows = [
        result("p", 0, correct=True),
        result("p", 1),
        result("p", 2, status="error"),
        result("p", 3, status="timeout"),
    ]
    assert accuracy(rows) == 0.5
    assert accuracy(rows[2:]) is None


def test_figures_by_hand() -> None:
    rows = [result("p", index, correct=index == 0, tokens=10 if index == 3 else 2) for index in range(4)]
    rows += [result("q", index, correct=True) for index in range(3)] + [result("q", 3, status="timeout")]
    figures = {one.metric: one for one in summarise(rows, MEASURED, problems=3, seed=1)}
    assert figures["avg@4"].value == pytest.approx((1 / 4 + 1) / 2)
    assert figures["pass@2"].value == pytest.approx((1 / 2 + 1) / 2)
    assert (figures["pass@4"].value, figures["pass@4"].problems) == (1.0, 1)  # q has three judged samples
    assert figures["maj@1"].value == pytest.approx(figures["avg@4"].value)
    assert figures["mean_tokens"].value == 3.0
    assert figures["truncated"].value == 1 / 8
    assert (figures["unjudged"].value, figures["unanswered"].value) == (1.0, 1.0)
    assert figures["pass@4"].low is None
    assert figures["avg@4"].low == 0.25
    assert figures["avg@4"].high == 1.0
    assert len({one.figure_id for one in figures.values()}) == len(figures)


def test_the_order_of_rows_changes_no_figure() -> None:
    rows = [result(f"p{k}", index, correct=(k + index) % 3 == 0) for k in range(5) for index in range(4)]
    forward = {one.metric: one.value for one in summarise(rows, MEASURED, problems=5, seed=1)}
    backward = {one.metric: one.value for one in summarise(rows[::-1], MEASURED, problems=5, seed=1)}
    assert forward == pytest.approx(backward)


def test_without_a_sample_only_the_unanswered_are_counted() -> None:
    (figure,) = summarise([], MEASURED, problems=7, seed=1)
    assert (figure.metric, figure.value, figure.problems) == ("unanswered", 7.0, 7)


def test_the_interval_is_seeded_and_holds_the_mean() -> None:
    values = [float(k % 4 == 0) for k in range(60)]
    first = bootstrap(values, 5)
    assert first == bootstrap(values, 5)
    assert first != bootstrap(values, 6)
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.value == 0.25 < first.high
    spread = (0.25 * 0.75 / 60) ** 0.5
    assert first.high - first.low == pytest.approx(2 * 1.96 * spread, rel=0.15)


def test_k_doubles_up_to_the_samples() -> None:
    assert powers(8) == [1, 2, 4, 8]
    assert powers(6) == [1, 2, 4, 6]
    assert powers(1) == [1]
