"""RLTF, ICRL, SFT and SDPO: hand-worked numbers, gradients of the formulas as written, invariances, refusals."""

import dataclasses
import math

import pytest
import torch
from loss_rows import random_rows, take, terms_and_gradient
from torch import Tensor

from cgrpo_core.aggregation import Denominators
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import SUM_NAMES, policy_loss
from cgrpo_core.params import LossParams, MismatchParams, ShapingParams

PLAIN = {"ratio": "none", "clip_low": None, "clip_high": None}
RLTF = LossParams(**PLAIN, shaping=ShapingParams(kind="log_p"))
ICRL = LossParams(shaping=ShapingParams(kind="context_ratio", cap=1.5))
SFT = LossParams(kind="sft", **PLAIN, aggregate="token_mean")
SDPO = LossParams(kind="sdpo", **PLAIN, aggregate="token_mean")
ALL = [pytest.param(params, id=name) for name, params in (("rltf", RLTF), ("icrl", ICRL), ("sft", SFT), ("sdpo", SDPO))]


def rows_with_context(seed: int, rows: int = 9) -> LossRows:
    """Return random rows; divergences are a function of the log-probs, so that a gradient flows through them."""
    plain = random_rows(seed, rows=rows)
    rng = torch.Generator().manual_seed(seed + 1)
    context = plain.logprobs + torch.randn(plain.logprobs.shape, generator=rng, dtype=torch.float64)
    return dataclasses.replace(plain, context_logprobs=context, divergences=plain.logprobs.square())


def loss_and_gradient(rows: LossRows, params: LossParams) -> tuple[float, Tensor, dict[str, float]]:
    logprobs = rows.logprobs.clone().requires_grad_(True)
    given = dataclasses.replace(rows, logprobs=logprobs, divergences=logprobs.square())
    terms = policy_loss(given, params, Denominators(losses=10.0, entropy=10.0))
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    return float(terms.loss.detach()), gradient, terms.sums


def one_refinement(prob: float, in_context: float, advantage: float) -> LossRows:
    logprobs = torch.tensor([[math.log(prob)]], dtype=torch.float64)
    return LossRows(
        logprobs=logprobs,
        old_logprobs=logprobs,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        off_policy=torch.tensor([True]),
        mask=torch.ones(1, 1),
        context_logprobs=torch.tensor([[math.log(in_context)]], dtype=torch.float64),
        divergences=torch.tensor([[0.25]], dtype=torch.float64),
    )


def test_rltf_raises_the_log_prob_of_a_refinement_by_its_advantage_alone() -> None:
    terms, gradient = terms_and_gradient(one_refinement(0.5, 0.9, 0.75), RLTF, denominator=1.0)
    assert float(terms.loss.detach()) == pytest.approx(0.75 * math.log(2))
    assert gradient.item() == pytest.approx(-0.75)
    assert terms.sums["shaping_sum"] == pytest.approx(0.5)


@pytest.mark.parametrize(("in_context", "weight"), [(0.8, 0.25), (0.2, 1.0), (0.1, 1.5)])
def test_icrl_weighs_a_token_by_how_likely_it_is_without_the_critique_up_to_the_cap(
    in_context: float, weight: float
) -> None:
    terms, gradient = terms_and_gradient(one_refinement(0.2, in_context, 0.5), ICRL, denominator=1.0)
    assert gradient.item() == pytest.approx(-0.5 * weight)
    assert float(terms.loss.detach()) == pytest.approx(-0.5 * weight * math.log(0.2))
    assert terms.sums["shaping_sum"] == pytest.approx(weight)


def test_sft_is_the_cross_entropy_whatever_advantage_or_origin_a_row_has() -> None:
    for advantage in (1.0, 0.0, -2.0):
        terms, gradient = terms_and_gradient(one_refinement(0.25, 0.5, advantage), SFT, denominator=1.0)
        assert float(terms.loss.detach()) == pytest.approx(math.log(4))
        assert gradient.item() == pytest.approx(-1.0)


def test_sdpo_is_the_divergence_whatever_the_advantage() -> None:
    for advantage in (1.0, 0.0):
        rows = one_refinement(0.25, 0.5, advantage)
        terms = policy_loss(rows, SDPO, Denominators(losses=2.0, entropy=1.0))
        assert float(terms.loss.detach()) == pytest.approx(0.125)
        assert terms.sums["divergence_sum"] == pytest.approx(0.25)


def as_written(rows: LossRows, logprobs: Tensor, params: LossParams) -> Tensor:
    assert rows.context_logprobs is not None
    total = logprobs.new_zeros(())
    for i in range(len(rows.weights)):
        for t in range(logprobs.shape[1]):
            if not rows.mask[i, t]:
                continue
            logp, advantage = logprobs[i, t], rows.advantages[i]
            if params.kind == "sft":
                term = -logp
            elif params.kind == "sdpo":
                term = logp.square()
            elif not rows.off_policy[i] and params.ratio == "none":
                term = -advantage * logp
            elif not rows.off_policy[i]:
                ratio = (logp - rows.old_logprobs[i, t]).exp()
                term = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            elif params.shaping.kind == "log_p":
                term = -advantage * logp
            else:
                weight = (logp - rows.context_logprobs[i, t]).exp().detach().clamp(max=params.shaping.cap)
                term = -advantage * weight * logp
            total = total + rows.weights[i] * term
    return total / 10.0


@pytest.mark.parametrize("params", ALL)
@pytest.mark.parametrize("seed", [3, 4])
def test_value_and_gradient_are_those_of_the_formula_as_written(params: LossParams, seed: int) -> None:
    rows = rows_with_context(seed)
    value, gradient, _ = loss_and_gradient(rows, params)
    logprobs = rows.logprobs.clone().requires_grad_(True)
    expected = as_written(rows, logprobs, params)
    assert value == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logprobs)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("params", ALL)
def test_any_split_and_order_of_rows_adds_up_to_the_whole(params: LossParams) -> None:
    rows = rows_with_context(5)
    value, gradient, sums = loss_and_gradient(rows, params)
    for split in ([[0], [1, 2, 3, 4, 5, 6, 7, 8]], [[8, 1, 4], [0, 2, 7, 3], [5, 6]]):
        parts = [(part, *loss_and_gradient(take(rows, part), params)) for part in split]
        assert math.fsum(part[1] for part in parts) == pytest.approx(value, abs=1e-12)
        for name in SUM_NAMES:
            assert math.fsum(part[3][name] for part in parts) == pytest.approx(sums[name], abs=1e-12)
        for indices, _, part_gradient, _ in parts:
            torch.testing.assert_close(part_gradient, gradient[indices], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("params", ALL)
def test_what_stands_at_padding_does_not_matter_even_if_it_is_not_a_number(params: LossParams) -> None:
    rows = rows_with_context(6)
    value, gradient, _ = loss_and_gradient(rows, params)
    hole = torch.where(rows.mask.bool(), 0.0, math.nan)
    assert rows.context_logprobs is not None
    holed = dataclasses.replace(
        rows,
        logprobs=rows.logprobs + hole,
        context_logprobs=rows.context_logprobs + hole,
        old_logprobs=rows.old_logprobs + hole,
    )
    again, again_gradient, _ = loss_and_gradient(dataclasses.replace(holed, sampling_logprobs=None), params)
    assert again == value
    valid = rows.mask.bool()
    torch.testing.assert_close(again_gradient[valid], gradient[valid], rtol=0, atol=0)


def test_a_row_without_advantage_pulls_nothing_under_rltf_and_icrl_even_at_probability_0() -> None:
    for params in (RLTF, ICRL):
        rows = dataclasses.replace(
            one_refinement(0.5, 0.5, 0.0), logprobs=torch.tensor([[-math.inf]], dtype=torch.float64)
        )
        terms, gradient = terms_and_gradient(rows, params, denominator=1.0)
        assert (float(terms.loss.detach()), gradient.item()) == (0.0, 0.0)


def test_what_was_not_given_is_asked_for() -> None:
    rows = dataclasses.replace(random_rows(7), context_logprobs=None)
    with pytest.raises(ValueError, match="log-probs under the prompt"):
        terms_and_gradient(rows, ICRL)
    with pytest.raises(ValueError, match="divergence of each token"):
        terms_and_gradient(rows, SDPO)


@pytest.mark.parametrize("kind", ["sft", "sdpo"])
def test_a_loss_without_policy_gradient_refuses_what_would_correct_one(kind: str) -> None:
    with pytest.raises(ValueError, match="ratio none"):
        LossParams(kind=kind)
    with pytest.raises(ValueError, match="mismatch none"):
        LossParams(kind=kind, **PLAIN, mismatch=MismatchParams(kind="truncated"))
