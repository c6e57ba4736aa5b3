"""The figures of an iteration."""

import itertools

import pytest

from cgrpo_core.metrics import group_stats, iteration_summary, mean, pass_at_k


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        outcomes = [index < correct for index in range(samples)]
        subsets = list(itertools.combinations(outcomes, k))
        share = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_beyond_the_samples_is_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(samples, correct, k)


def test_a_mean_leaves_out_what_is_absent() -> None:
    assert mean([1.0, None, 0.0]) == 0.5
    assert mean([None]) is None
    assert mean([]) is None


RESPONSES = {
    "zero": [0.0, 0.0],
    "all": [1.0, 1.0],
    "mixed": [1.0, 0.0],
    "partly": [None, 0.0],
    "unjudged": [None, None],
}


def test_groups_are_told_apart_by_their_judged_rows() -> None:
    assert group_stats(RESPONSES) == {
        "groups": 5.0,
        "groups_unjudged": 1.0,
        "groups_equal_rewards": 3.0,
        "groups_zero_correct": 2.0,
        "groups_all_correct": 1.0,
    }


def test_the_summary_counts_what_was_judged_refined_and_repaired() -> None:
    summary = iteration_summary(RESPONSES, {"zero": [1.0, 0.0], "partly": [0.0, None]}, selected=2)
    assert summary["responses"] == 10.0
    assert summary["responses_unjudged"] == 3.0
    assert summary["reward_mean"] == pytest.approx(3 / 7)
    assert summary["refinement_reward_mean"] == pytest.approx(1 / 3)
    assert (summary["groups_refined"], summary["groups_repaired"]) == (2.0, 1.0)
    assert (summary["refinements"], summary["refinements_unjudged"]) == (4.0, 1.0)
    assert summary["refinements_selected"] == 2.0


def test_a_figure_with_nothing_to_average_is_absent() -> None:
    summary = iteration_summary({"g": [None]}, {}, selected=0)
    assert "reward_mean" not in summary
    assert "refinement_reward_mean" not in summary
    assert summary["groups_unjudged"] == 1.0
