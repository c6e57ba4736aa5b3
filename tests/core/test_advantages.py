"""Advantages and row weights: hand-worked groups, and what must not matter."""

import math
import random

import pytest

from cgrpo_core.advantages import group_advantages, row_weights
from cgrpo_core.params import AdvantageParams

PAPER = AdvantageParams()
WITH_STD = AdvantageParams(divide_by_std=True)


def test_the_paper_group_of_seven_wrong_responses_and_one_right_refinement() -> None:
    advantages = group_advantages([0.0] * 7 + [1.0], ["g"] * 8, PAPER)
    assert advantages == [-0.125] * 7 + [0.875]


def test_with_the_unbiased_std_the_same_group_gets_the_release_numbers() -> None:
    advantages = group_advantages([0.0] * 7 + [1.0], ["g"] * 8, WITH_STD)
    assert advantages == pytest.approx([-0.353553] * 7 + [2.474874], abs=1e-5)
    std = math.sqrt((7 * 0.125**2 + 0.875**2) / 7)
    assert advantages[-1] == pytest.approx(0.875 / (std + 1e-6), rel=1e-14)


def test_each_group_has_its_own_baseline_and_rows_need_not_be_adjacent() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert group_advantages(rewards, ["a", "b", "a", "b", "b"], PAPER) == pytest.approx(
        [0.5, -2 / 3, -0.5, 1 / 3, 1 / 3], abs=1e-15
    )


@pytest.mark.parametrize("params", [PAPER, WITH_STD])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3])
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_a_group_of_equal_rewards_or_of_one_row_gets_exactly_zero(
    params: AdvantageParams, reward: float, size: int
) -> None:
    assert group_advantages([reward] * size, ["g"] * size, params) == [0.0] * size


@pytest.mark.parametrize("params", [PAPER, WITH_STD])
def test_a_permutation_of_the_rows_permutes_the_advantages_bit_for_bit(params: AdvantageParams) -> None:
    rng = random.Random(3)
    rows = [(rng.choice("abc"), rng.random()) for _ in range(30)]
    advantage_of = dict(zip(rows, group_advantages([r for _, r in rows], [g for g, _ in rows], params), strict=True))
    for _ in range(5):
        rng.shuffle(rows)
        advantages = group_advantages([r for _, r in rows], [g for g, _ in rows], params)
        assert advantages == [advantage_of[row] for row in rows]


def test_the_advantages_of_a_group_add_up_to_zero() -> None:
    rng = random.Random(4)
    assert math.fsum(group_advantages([rng.random() for _ in range(9)], ["g"] * 9, PAPER)) == pytest.approx(
        0, abs=1e-14
    )


def test_an_unjudged_row_cannot_slip_in_as_not_a_number() -> None:
    with pytest.raises(ValueError, match="row 1 of group g"):
        group_advantages([1.0, math.nan], ["g", "g"], PAPER)
    with pytest.raises(ValueError, match="longer"):
        group_advantages([1.0], ["g", "g"], PAPER)


def test_the_paper_weighs_a_lone_refinement_as_much_as_seven_responses() -> None:
    weights = row_weights(["response"] * 7 + ["refinement"], ["g"] * 8, PAPER)
    assert weights == pytest.approx([1 / 7] * 7 + [1.0])


def test_one_sum_weighs_every_row_of_a_group_alike() -> None:
    weights = row_weights(["response"] * 7 + ["refinement"], ["g"] * 8, AdvantageParams(weights="one_sum"))
    assert weights == [1 / 8] * 8


def test_weights_are_counted_group_by_group() -> None:
    origins = ["response", "refinement", "response", "response", "refinement", "refinement"]
    groups = ["a", "a", "b", "a", "b", "b"]
    assert row_weights(origins, groups, PAPER) == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert row_weights(origins, groups, AdvantageParams(weights="one_sum")) == pytest.approx([1 / 3] * 6)


def test_leave_one_out_compares_each_row_with_the_mean_of_the_others() -> None:
    params = AdvantageParams(baseline="leave_one_out")
    rewards = [1.0, 0.0, 0.0, 0.5]
    expected = [reward - (sum(rewards) - reward) / 3 for reward in rewards]
    assert group_advantages(rewards, ["g"] * 4, params) == pytest.approx(expected, abs=1e-15)
    assert group_advantages([1.0, 1.0], ["g"] * 2, params) == [0.0, 0.0]


def test_equal_weights_are_one_whatever_the_group() -> None:
    origins = ["response", "refinement", "solution"]
    assert row_weights(origins, ["a", "a", "b"], AdvantageParams(weights="equal")) == [1.0, 1.0, 1.0]
    assert row_weights(["response", "response", "solution"], ["a"] * 3, PAPER) == [0.5, 0.5, 1.0]
