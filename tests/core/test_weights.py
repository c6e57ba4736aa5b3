"""The distance of two sets of weights, by hand."""

import math

import torch

from cgrpo_core.weights import weights_distance


def named(*values):
    return {"w": torch.tensor(values)}


def test_the_distance_is_over_how_far_training_had_moved():
    distance = weights_distance(named(1.0, 2.5), named(1.0, 2.0), named(1.0, 0.0))
    assert (distance.max_abs, distance.relative) == (0.5, 0.25)


def test_weights_that_training_never_moved_are_at_distance_zero_or_infinite():
    assert weights_distance(named(1.0), named(1.0), named(1.0)).relative == 0.0
    assert weights_distance(named(2.0), named(1.0), named(1.0)).relative == math.inf


def test_a_tied_head_that_only_the_base_model_has_does_not_count():
    base = {**named(0.0), "lm_head.weight": torch.tensor([5.0])}
    assert weights_distance(named(1.0), named(1.0), base).relative == 0.0
