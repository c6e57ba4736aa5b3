"""The objective: hand-worked numbers, and gradients against the formula as written."""

import math
from dataclasses import replace

import pytest
import torch
from loss_rows import GRPO, NO_CLIP, PAPER, VARIANTS, Rows, hand_rows, random_rows, terms_and_gradient
from torch import Tensor

from cgrpo_core.losses import SUM_NAMES, loss_denominator, policy_loss
from cgrpo_core.params import LossParams


def formula_as_written(rows: Rows, params: LossParams, denominator: float, logprobs: Tensor) -> Tensor:
    """The objective row by row and token by token, with the min and clip of the paper spelt out."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(logprobs.shape[0]):
        row_sum = torch.zeros((), dtype=torch.float64)
        for t in range(logprobs.shape[1]):
            if not rows.mask[row, t]:
                continue
            advantage = rows.advantages[row]
            if rows.is_refinement[row] and params.kind == "critique_grpo":
                p = logprobs[row, t].exp()
                gain = advantage * (p if params.shaping.kind == "none" else p / (p + params.shaping.gamma))
            else:
                ratio = (logprobs[row, t] - rows.old_logprobs[row, t]).exp()
                gain = ratio * advantage
                if params.clip_low is not None and params.clip_high is not None:
                    gain = torch.minimum(gain, ratio.clamp(1 - params.clip_low, 1 + params.clip_high) * advantage)
            row_sum = row_sum - gain - params.entropy_coef * rows.entropy[row, t]
        length = float(rows.mask[row].sum()) if params.aggregate == "sequence_mean" else 1.0
        total = total + rows.weights[row] * row_sum / length / denominator
    return total


@pytest.mark.parametrize("params", VARIANTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loss_and_gradient_are_those_of_the_formula_as_written(params: LossParams, seed: int) -> None:
    rows = random_rows(seed)
    terms, gradient = terms_and_gradient(rows, params)
    logprobs = rows.logprobs.clone().requires_grad_(True)
    written = formula_as_written(rows, params, 10.0, logprobs)
    (expected,) = torch.autograd.grad(written, logprobs)
    torch.testing.assert_close(terms.loss, written, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_hand_worked_loss_of_the_paper() -> None:
    terms, gradient = terms_and_gradient(hand_rows(), PAPER, denominator=4.0)
    response = -(1.2 * 2 + 0.5 * 2)  # min(3, 2.4) + min(1, 1.6)
    refinement = 0.1 / 0.2 + 0.4 / 0.5 + 0.9 / 1.0
    assert terms.loss.item() == pytest.approx((0.5 * response + 1.0 * refinement) / 4, abs=1e-15)
    assert gradient[0].tolist() == pytest.approx([0.0, -0.5 * 0.5 * 2 / 4, 0.0], abs=1e-15)
    bracket = [0.1 * p / (p + 0.1) ** 2 for p in (0.1, 0.4, 0.9)]
    assert gradient[1].tolist() == pytest.approx([value / 4 for value in bracket], abs=1e-15)


def test_hand_worked_sums_for_the_metrics() -> None:
    terms, _ = terms_and_gradient(hand_rows(), PAPER, denominator=4.0)
    assert tuple(terms.sums) == SUM_NAMES
    assert terms.sums == pytest.approx(
        {
            "loss": terms.loss.item(),
            "entropy_sum": 1 + 2 + 3 + 4 + 5,
            "response_tokens": 2,
            "refinement_tokens": 3,
            "clip_low_count": 0,
            "clip_high_count": 1,
            "shaping_sum": 0.5 + 0.8 + 0.9,
            "refinement_prob_sum": 0.1 + 0.4 + 0.9,
        }
    )


def test_grpo_takes_the_clipped_ratio_on_every_row() -> None:
    rows = hand_rows()
    terms, gradient = terms_and_gradient(rows, GRPO, denominator=4.0)
    assert terms.loss.item() == pytest.approx((0.5 * -3.4 + 1.0 * 3 * 1.0) / 4, abs=1e-15)
    assert gradient[1].tolist() == pytest.approx([0.25, 0.25, 0.25], abs=1e-15)
    assert terms.sums["shaping_sum"] == 0.0
    assert terms.sums["refinement_prob_sum"] == pytest.approx(1.4)


def test_sequence_mean_divides_each_row_by_its_own_length() -> None:
    params = LossParams(kind="grpo", aggregate="sequence_mean")
    terms, _ = terms_and_gradient(hand_rows(), params, denominator=2.0)
    assert terms.loss.item() == pytest.approx((0.5 * -3.4 / 2 + 1.0 * 3 / 3) / 2, abs=1e-15)


def test_an_entropy_bonus_is_weighted_like_the_row_it_belongs_to() -> None:
    rows = hand_rows()
    plain, _ = terms_and_gradient(rows, PAPER, denominator=4.0)
    with_bonus, _ = terms_and_gradient(rows, LossParams(entropy_coef=0.1), denominator=4.0)
    assert with_bonus.loss.item() - plain.loss.item() == pytest.approx(-0.1 * (0.5 * 3 + 1.0 * 12) / 4, abs=1e-14)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.2001, 1.0, 0.0),  # pushed up and above the upper edge: no gradient
        (1.1999, 1.0, -1.1999),
        (0.5, 1.0, -0.5),  # pushed up from below: gradient
        (0.7999, -1.0, 0.0),  # pushed down and below the lower edge: no gradient
        (0.8001, -1.0, 0.8001),
        (3.0, -1.0, 3.0),  # pushed down from above: gradient, unbounded
    ],
)
def test_the_clip_takes_the_gradient_only_on_the_side_that_the_advantage_pushes_to(
    ratio: float, advantage: float, slope: float
) -> None:
    rows = Rows(
        logprobs=torch.tensor([[-1.0]], dtype=torch.float64),
        old_logprobs=torch.tensor([[-1.0 - math.log(ratio)]], dtype=torch.float64),
        entropy=torch.zeros(1, 1, dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        is_refinement=torch.tensor([False]),
        mask=torch.ones(1, 1),
    )
    terms, gradient = terms_and_gradient(rows, PAPER, denominator=1.0)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)
    assert terms.sums["clip_high_count"] == float(ratio > 1.2 and advantage > 0)
    assert terms.sums["clip_low_count"] == float(ratio < 0.8 and advantage < 0)
    _, unclipped = terms_and_gradient(rows, NO_CLIP, denominator=1.0)
    assert unclipped.item() == pytest.approx(-advantage * ratio, abs=1e-12)


def test_bfloat16_logprobs_are_widened_before_the_ratio_is_taken() -> None:
    rows = random_rows(16)
    narrow = replace(rows, logprobs=rows.logprobs.bfloat16(), old_logprobs=rows.old_logprobs.bfloat16())
    terms, gradient = terms_and_gradient(narrow, PAPER)
    assert terms.loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"kl_coef": 0.1}, "kl_coef"),
        ({"clip_low": None}, "clip_low"),
        ({"clip_high": -0.1}, "clip_high"),
        ({"entropy_coef": -1.0}, "entropy_coef"),
        ({"entropy_coef": math.nan}, "entropy_coef"),
    ],
)
def test_a_loss_that_this_objective_does_not_have_cannot_be_asked_for(
    asked: dict[str, float | None], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        LossParams(**asked)


@pytest.mark.parametrize("denominator", [0.0, -1.0, math.nan, math.inf])
def test_a_denominator_that_is_no_positive_number_is_refused(denominator: float) -> None:
    with pytest.raises(ValueError, match="denominator"):
        terms_and_gradient(hand_rows(), PAPER, denominator)


def test_an_entropy_bonus_without_entropy_is_refused_and_a_loss_without_either_is_not() -> None:
    rows = hand_rows()
    arguments = {
        "logprobs": rows.logprobs,
        "old_logprobs": rows.old_logprobs,
        "entropy": None,
        "advantages": rows.advantages,
        "weights": rows.weights,
        "is_refinement": rows.is_refinement,
        "mask": rows.mask,
        "denominator": 4.0,
    }
    with pytest.raises(ValueError, match="entropy"):
        policy_loss(params=LossParams(entropy_coef=0.1), **arguments)
    assert policy_loss(params=PAPER, **arguments).sums["entropy_sum"] == 0.0


def test_the_denominator_is_prompts_times_the_constant_or_prompts_alone() -> None:
    assert loss_denominator(PAPER, prompts=8, max_response_tokens=128) == 1024.0
    assert loss_denominator(LossParams(aggregate="sequence_mean"), prompts=8, max_response_tokens=128) == 8.0
    with pytest.raises(ValueError, match="empty"):
        loss_denominator(PAPER, prompts=0, max_response_tokens=128)
