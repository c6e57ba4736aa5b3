"""p/(p+gamma): its derivative, its peak, and what it is against an unshaped token (method, Appendix F facts)."""

import math

import pytest
import torch

from cgrpo_core.critique_grpo import shaped_probability, shaped_token_losses
from cgrpo_core.params import ShapingParams

GAMMAS = [0.1, 0.3, 0.5]


def slope(probs: list[float], params: ShapingParams) -> list[float]:
    logprobs = torch.tensor(probs, dtype=torch.float64).log().requires_grad_(True)
    (gradient,) = torch.autograd.grad(shaped_probability(logprobs, params).sum(), logprobs)
    return gradient.tolist()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_value_is_p_over_p_plus_gamma(gamma: float) -> None:
    probs = torch.linspace(1e-6, 1.0, 101, dtype=torch.float64)
    found = shaped_probability(probs.log(), ShapingParams(gamma=gamma))
    torch.testing.assert_close(found, probs / (probs + gamma), rtol=1e-13, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_slope_in_log_p_is_gamma_p_over_the_square(gamma: float) -> None:
    probs = [1e-5, 0.01, 0.1, 0.5, 0.999]
    expected = [gamma * p / (p + gamma) ** 2 for p in probs]
    assert slope(probs, ShapingParams(gamma=gamma)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_slope_peaks_at_a_quarter_where_p_is_gamma(gamma: float) -> None:
    (peak,) = slope([gamma], ShapingParams(gamma=gamma))
    assert peak == pytest.approx(0.25, abs=1e-15)
    assert max(slope([gamma * 0.9, gamma * 1.1, 1e-9, 1.0], ShapingParams(gamma=gamma))) < peak


def test_against_the_unshaped_weight_rare_tokens_are_amplified_and_likely_ones_damped() -> None:
    probs = [0.01, 0.1, 0.5, 1.0]
    assert slope(probs, ShapingParams(gamma=0.1)) == pytest.approx([0.083, 0.25, 0.139, 0.083], abs=5e-4)
    assert slope(probs, ShapingParams(kind="none")) == pytest.approx(probs, rel=1e-14)


def test_a_probability_of_zero_has_value_and_slope_zero_not_nan() -> None:
    logprobs = torch.tensor([-math.inf, -800.0], requires_grad=True)
    shaped = shaped_probability(logprobs, ShapingParams())
    (gradient,) = torch.autograd.grad(shaped.sum(), logprobs)
    assert shaped.tolist() == [0.0, 0.0]
    assert gradient.tolist() == [0.0, 0.0]


def test_a_wrong_refinement_is_pushed_down_as_hard_as_a_right_one_is_pushed_up() -> None:
    probs = torch.tensor([[0.02, 0.3, 0.9]], dtype=torch.float64)
    gradients = []
    for advantage in (1.0, -1.0):
        logprobs = probs.log().requires_grad_(True)
        active = torch.ones(1, 3, dtype=torch.bool)
        losses = shaped_token_losses(logprobs, None, torch.tensor([advantage]), active, ShapingParams()).losses
        gradients.append(torch.autograd.grad(losses.sum(), logprobs)[0])
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=0, atol=0)
    assert (gradients[1] > 0).all()  # for every p: none is lost to a clip at 1 - eps
