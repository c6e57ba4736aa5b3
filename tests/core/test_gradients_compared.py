"""Cosines and shares of gradients, by hand and against numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cgrpo_core.counterfactual as counterfactual
from cgrpo_core.counterfactual import cosine, dot, norm, pairwise_cosines, with_advantages
from cgrpo_core.params import AdvantageParams
from cgrpo_core.records import TrainingSample

NUMBERS = st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5)


def gradient(*values):
    return {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:]).reshape(-1, 1)}


def test_by_hand():
    left, right = gradient(3.0, 0.0, 4.0), gradient(0.0, 5.0, 0.0)
    assert norm(left) == 5.0
    assert cosine(left, right) == 0.0
    assert cosine(left, gradient(-6.0, 0.0, -8.0)) == -1.0
    assert cosine(left, gradient(3.0, 4.0, 0.0)) == pytest.approx(9 / 25)
    matrix = pairwise_cosines([left, right, gradient(0.0, 0.0, 0.0)])
    assert matrix == [[1.0, 0.0, None], [0.0, 1.0, None], [None, None, None]]


@given(NUMBERS, NUMBERS, st.integers(1, 4))
def test_the_pieces_do_not_matter(left, right, piece):
    before = counterfactual.PIECE
    counterfactual.PIECE = piece
    try:
        found = dot(gradient(*left), gradient(*right))
    finally:
        counterfactual.PIECE = before
    assert found == pytest.approx(float(np.dot(left, right)), abs=1e-9)


def test_a_gradient_of_bfloat16_sized_numbers_is_added_up_in_float64():
    many = {"w": torch.full((1_000_000,), 1e-4)}
    assert norm(many) == pytest.approx(math.sqrt(1_000_000) * float(torch.tensor(1e-4)), rel=1e-12)


def test_stored_rewards_give_the_advantages_of_another_rule():
    rows = [
        TrainingSample(
            sample_id=str(place),
            group_id="g",
            origin="refinement" if place == 3 else "response",
            prompt_token_ids=(1,),
            token_ids=(2,),
            sampling_logprobs=(-1.0,),
            reward=float(place == 3),
            advantage=9.0,
            weight=9.0,
        )
        for place in range(4)
    ]
    paper = with_advantages(rows, AdvantageParams())
    assert paper == [(-0.25, 1 / 3)] * 3 + [(0.75, 1.0)]
    rloo = with_advantages(rows, AdvantageParams(baseline="leave_one_out", weights="one_sum"))
    assert [advantage for advantage, _ in rloo] == pytest.approx([-1 / 3] * 3 + [1.0])
    assert {weight for _, weight in rloo} == {0.25}
