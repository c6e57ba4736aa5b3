"""KL estimators: hand-worked numbers, and which of them is unbiased."""

import math

import pytest
import torch

from cgrpo_core.kl import kl_penalty


def test_hand_worked_estimates() -> None:
    new, ref = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([-2.0, -1.5], dtype=torch.float64)
    assert kl_penalty(new, ref, "kl").tolist() == [1.0, -0.5]
    assert kl_penalty(new, ref, "abs").tolist() == [1.0, 0.5]
    assert kl_penalty(new, ref, "mse").tolist() == [0.5, 0.125]
    low_var = [math.exp(-1) - 1 + 1, math.exp(0.5) - 1 - 0.5]
    assert kl_penalty(new, ref, "low_var_kl").tolist() == pytest.approx(low_var, rel=1e-14)


def test_low_var_kl_is_bounded_and_never_negative() -> None:
    new, ref = torch.tensor([-30.0, 0.0, -1.0]), torch.tensor([-0.1, -30.0, -1.0])
    assert kl_penalty(new, ref, "low_var_kl").tolist() == [10.0, 10.0, 0.0]


def test_kl_and_low_var_kl_both_estimate_the_kl_divergence() -> None:
    logits = 0.5 * torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    new, ref = torch.log_softmax(logits, -1)
    exact = (new.exp() * (new - ref)).sum()
    for estimator in ("kl", "low_var_kl"):
        torch.testing.assert_close((new.exp() * kl_penalty(new, ref, estimator)).sum(), exact)


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(ValueError, match="k17"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k17")
