"""The objective: hand-worked numbers, and gradients against the formula as written."""

import math
from dataclasses import replace

import pytest
import torch
from loss_rows import GRPO, NO_CLIP, PAPER, VARIANTS, hand_rows, random_rows, terms_and_gradient
from torch import Tensor

from cgrpo_core.aggregation import Denominators, denominators, step_size
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import SUM_NAMES, policy_loss
from cgrpo_core.params import AdvantageParams, LossParams, MismatchParams, Params, RolloutParams


def gain_as_written(rows: LossRows, params: LossParams, logprobs: Tensor, row: int, t: int) -> Tensor:
    """What one token of a row gains, with the min, clip and detached weights of the papers spelt out."""
    advantage, new = rows.advantages[row], logprobs[row, t]
    if rows.off_policy[row] and params.kind == "critique_grpo":
        p = new.exp()
        return advantage * (p if params.shaping.kind == "none" else p / (p + params.shaping.gamma))
    low, high = params.clip_low, params.clip_high
    log_ratio = new - rows.old_logprobs[row, t]
    if params.ratio == "sequence":
        valid = rows.mask[row].bool()
        log_ratio = (logprobs[row][valid] - rows.old_logprobs[row][valid]).mean()
    ratio = log_ratio.exp()
    if params.ratio == "none":
        gain = advantage * new
    elif params.ratio == "cispo":
        bounds = (0.0 if low is None else 1 - low, math.inf if high is None else 1 + high)
        gain = min(max(ratio.item(), bounds[0]), bounds[1]) * advantage * new
    elif low is None or high is None:
        gain = ratio * advantage
    else:
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if params.mismatch.kind == "truncated" and not rows.off_policy[row]:
        weight = (rows.old_logprobs[row, t] - rows.sampling_logprobs[row, t]).exp().item()
        gain = min(weight, params.mismatch.cap) * gain
    if not rows.off_policy[row]:
        excess = rows.ref_logprobs[row, t] - new
        gain = gain - params.kl_coef * (excess.exp() - 1 - excess)
    return gain


def formula_as_written(rows: LossRows, params: LossParams, denominator: float, logprobs: Tensor) -> Tensor:
    """The objective row by row and token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(logprobs.shape[0]):
        row_sum = torch.zeros((), dtype=torch.float64)
        for t in range(logprobs.shape[1]):
            if not rows.mask[row, t]:
                continue
            bonus = params.entropy_coef * rows.entropy[row, t]
            row_sum = row_sum - gain_as_written(rows, params, logprobs, row, t)
            if params.entropy_aggregate == "as_loss":
                row_sum = row_sum - bonus
            else:
                total = total - bonus / denominator
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
            "off_policy_tokens": 3,
            "clip_low_count": 0,
            "clip_high_count": 1,
            "shaping_sum": 0.5 + 0.8 + 0.9,
            "off_policy_prob_sum": 0.1 + 0.4 + 0.9,
            "mismatch_sum": 0,
            "mismatch_capped_count": 0,
            "kl_sum": 0,
            "divergence_sum": 0,
        }
    )


def test_grpo_takes_the_clipped_ratio_on_every_row() -> None:
    rows = hand_rows()
    terms, gradient = terms_and_gradient(rows, GRPO, denominator=4.0)
    assert terms.loss.item() == pytest.approx((0.5 * -3.4 + 1.0 * 3 * 1.0) / 4, abs=1e-15)
    assert gradient[1].tolist() == pytest.approx([0.25, 0.25, 0.25], abs=1e-15)
    assert terms.sums["shaping_sum"] == 0.0
    assert terms.sums["off_policy_prob_sum"] == pytest.approx(1.4)


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
    rows = LossRows(
        logprobs=torch.tensor([[-1.0]], dtype=torch.float64),
        old_logprobs=torch.tensor([[-1.0 - math.log(ratio)]], dtype=torch.float64),
        entropy=torch.zeros(1, 1, dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        off_policy=torch.tensor([False]),
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
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"kl_coef": 0.1, "scaling": "release"}, "kl_coef"),
        ({"kl_coef": 0.1, "kind": "sft", "ratio": "none", "clip_low": None, "clip_high": None}, "kl_coef"),
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


def test_a_term_without_what_it_is_made_of_is_refused() -> None:
    rows = replace(hand_rows(), entropy=None)
    with pytest.raises(ValueError, match="entropy"):
        terms_and_gradient(rows, LossParams(entropy_coef=0.1))
    with pytest.raises(ValueError, match="reference policy"):
        terms_and_gradient(rows, LossParams(kl_coef=0.1))
    with pytest.raises(ValueError, match="sampling_logprobs"):
        terms_and_gradient(rows, LossParams(mismatch=MismatchParams(kind="truncated")))
    assert terms_and_gradient(rows, PAPER)[0].sums["entropy_sum"] == 0.0


def test_each_aggregation_has_its_denominator() -> None:
    size = step_size([4, 2, 6], [0.5, 0.5, 1.0], prompts=2, max_response_tokens=128)
    assert (size.rows, size.tokens, size.weighted_tokens) == (3, 12, 9.0)
    assert denominators(PAPER, size) == Denominators(losses=256.0, entropy=12.0)
    assert denominators(LossParams(aggregate="sequence_mean"), size).losses == 2.0
    assert denominators(LossParams(aggregate="token_mean"), size).losses == 9.0
    assert denominators(LossParams(scaling="release"), size) == Denominators(losses=3 * 128 / 8, entropy=3 / 8)
    with pytest.raises(ValueError, match="empty"):
        denominators(PAPER, step_size([], [], prompts=0, max_response_tokens=128))


def test_a_token_mean_weighs_each_token_of_the_step_alike_whatever_its_row() -> None:
    params = LossParams(kind="grpo", clip_low=None, clip_high=None, aggregate="token_mean")
    rows = replace(random_rows(21), weights=torch.ones(6, dtype=torch.float64))
    lengths = rows.mask.sum(dim=1).tolist()
    divide_by = denominators(params, step_size(lengths, [1.0] * 6, prompts=2, max_response_tokens=99))
    valid = rows.mask
    expected = -((rows.logprobs - rows.old_logprobs).exp() * rows.advantages[:, None])[valid].mean()
    assert policy_loss(rows, params, divide_by).loss.item() == pytest.approx(expected.item(), rel=1e-13)


def test_one_ratio_of_a_sequence_by_hand() -> None:
    """Ratios 1.5 and 0.5 of one row make exp((ln 1.5 + ln 0.5) / 2) = sqrt(0.75), above 1 - 0.2 and so not clipped."""
    params = LossParams(ratio="sequence", aggregate="sequence_mean")
    terms, gradient = terms_and_gradient(replace(hand_rows(), advantages=torch.tensor([2.0, 0.0])), params, 1.0)
    ratio = math.sqrt(0.75)
    assert terms.loss.item() == pytest.approx(-0.5 * 2 * ratio, abs=1e-15)
    assert gradient[0].tolist() == pytest.approx([-0.5 * 2 * ratio / 2] * 2 + [0.0], abs=1e-15)


def test_a_sequence_outside_its_clip_loses_the_gradient_of_all_its_tokens() -> None:
    params = LossParams(ratio="sequence", aggregate="sequence_mean", clip_low=3e-4, clip_high=4e-4)
    rows = replace(hand_rows(), advantages=torch.tensor([-2.0, 0.0], dtype=torch.float64))
    terms, gradient = terms_and_gradient(rows, params, 1.0)
    assert terms.loss.item() == pytest.approx(0.5 * 2 * (1 - 3e-4), abs=1e-15)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert terms.sums["clip_low_count"] == 2.0


def test_a_cispo_token_beyond_the_edge_weighs_what_the_edge_weighs_and_keeps_its_gradient() -> None:
    params = LossParams(kind="grpo", ratio="cispo", clip_low=None, clip_high=0.2)
    terms, gradient = terms_and_gradient(hand_rows(), params, 1.0)
    assert gradient[0].tolist() == pytest.approx([-0.5 * 2 * 1.2, -0.5 * 2 * 0.5, 0.0], abs=1e-15)
    assert terms.loss.item() == pytest.approx(
        -(1.2 * math.log(0.3) + 0.5 * math.log(0.2)) + math.log(0.1 * 0.4 * 0.9), abs=1e-14
    )
    assert (terms.sums["clip_high_count"], terms.sums["clip_low_count"]) == (1.0, 0.0)


def test_reinforce_needs_no_old_logprobs() -> None:
    params = LossParams(kind="grpo", ratio="none", clip_low=None, clip_high=None)
    rows = replace(hand_rows(), old_logprobs=torch.full((2, 3), math.nan, dtype=torch.float64))
    terms, gradient = terms_and_gradient(rows, params, 1.0)
    assert gradient.tolist() == [[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]
    assert terms.loss.item() == pytest.approx(-math.log(0.06) + math.log(0.036), abs=1e-14)


def test_the_mismatch_weight_is_capped_counted_and_never_of_a_refinement() -> None:
    """The trainer gave e times, and a quarter, of what the sampler had: weights min(e, 2) and 1/4."""
    rows = hand_rows()
    gap = torch.tensor([[1.0, math.log(0.25), 0.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    rows = replace(rows, sampling_logprobs=rows.old_logprobs - gap)
    plain, gradient = terms_and_gradient(rows, NO_CLIP, 1.0)
    corrected, weighted = terms_and_gradient(
        rows, replace(NO_CLIP, mismatch=MismatchParams(kind="truncated", cap=2.0)), 1.0
    )
    assert torch.equal(weighted[1], gradient[1])
    assert weighted[0].tolist() == pytest.approx([2 * gradient[0, 0].item(), gradient[0, 1].item() / 4, 0.0])
    assert (corrected.sums["mismatch_sum"], corrected.sums["mismatch_capped_count"]) == (2.25, 1.0)
    assert plain.sums["mismatch_sum"] == 0.0


def test_the_penalty_is_k3_to_the_reference_policy_on_responses_alone() -> None:
    """p = 0.3 and 0.2 where the reference has 0.6 and 0.1: k3 is 2 - 1 - ln 2 and 1/2 - 1 + ln 2."""
    rows = replace(hand_rows(), advantages=torch.zeros(2, dtype=torch.float64))
    rows = replace(rows, ref_logprobs=torch.tensor([[0.6, 0.1, 0.5], [0.9, 0.9, 0.9]], dtype=torch.float64).log())
    terms, gradient = terms_and_gradient(rows, LossParams(kl_coef=0.5), 4.0)
    kl = (2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))
    assert terms.sums["kl_sum"] == pytest.approx(kl, abs=1e-14)
    assert terms.loss.item() == pytest.approx(0.5 * 0.5 * kl / 4, abs=1e-15)
    assert gradient[0].tolist() == pytest.approx([0.5 * 0.5 * (1 - 2) / 4, 0.5 * 0.5 * (1 - 0.5) / 4, 0.0], abs=1e-15)
    assert gradient[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"ratio": "none"}, "no ratio to clip"),
        ({"ratio": "sequence"}, "once for each of them"),
        ({"ratio": "sequence", "aggregate": "token_mean"}, "once for each of them"),
        ({"ratio": "cispo", "clip_high": None}, "bounds the detached weight"),
        ({"clip_low": None}, "together, or both null"),
        ({"scaling": "release", "aggregate": "sequence_mean"}, "the release has no other"),
        ({"scaling": "release", "entropy_coef": 0.1}, "the release has no other"),
    ],
)
def test_a_combination_that_means_nothing_is_refused_with_the_reason(asked: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LossParams(**asked)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ({"advantage": AdvantageParams(weights="equal")}, "grow with the rows of a group"),
        ({"loss": LossParams(scaling="release")}, "it divides by rows itself"),
        (
            {"loss": LossParams(mismatch=MismatchParams(kind="truncated")), "rollout": RolloutParams(top_p=0.9)},
            "cut distribution",
        ),
    ],
)
def test_blocks_that_do_not_go_together_are_refused_with_the_reason(blocks: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Params(**blocks)


def test_leave_one_out_is_not_divided_by_a_deviation() -> None:
    with pytest.raises(ValueError, match="another deviation"):
        AdvantageParams(baseline="leave_one_out", divide_by_std=True)
