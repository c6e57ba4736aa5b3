"""Whatever ratio, clip, shaping, correction and aggregation: the cut, the order and the padding do not matter."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_rows import random_rows, take, terms_and_gradient

from cgrpo_core.losses import SUM_NAMES
from cgrpo_core.params import LossParams, MismatchParams, ShapingParams


@st.composite
def objectives(draw: st.DrawFn, ratios: tuple[str, ...] = ("token", "sequence", "cispo", "none")) -> LossParams:
    """Return any objective that is not refused: edges and aggregation go with the ratio."""
    ratio, edge = draw(st.sampled_from(ratios)), st.floats(0.01, 0.5)
    clipped = ratio == "cispo" or (ratio != "none" and draw(st.booleans()))
    aggregates = (
        ["sequence_mean"] if ratio == "sequence" else ["token_sum_over_constant", "sequence_mean", "token_mean"]
    )
    return LossParams(
        kind=draw(st.sampled_from(["critique_grpo", "grpo"])),
        ratio=ratio,  # type: ignore[arg-type]
        clip_low=draw(edge) if clipped else None,
        clip_high=draw(edge) if clipped else None,
        shaping=ShapingParams(
            kind=draw(st.sampled_from(["p_over_p_plus_gamma", "none", "log_p"])), gamma=draw(st.floats(0.01, 1.0))
        ),
        mismatch=MismatchParams(kind=draw(st.sampled_from(["none", "truncated"])), cap=draw(st.floats(1.0, 3.0))),
        aggregate=draw(st.sampled_from(aggregates)),  # type: ignore[arg-type]
        kl_coef=draw(st.sampled_from([0.0, 0.1])),
        entropy_coef=draw(st.sampled_from([0.0, 0.01])),
        entropy_aggregate=draw(st.sampled_from(["as_loss", "token_mean"])),
    )


@settings(max_examples=80, deadline=None)
@given(params=objectives(), seed=st.integers(0, 2**16), order=st.permutations(list(range(6))), cut=st.integers(1, 5))
def test_micro_batches_in_any_order_add_up_to_the_step(
    params: LossParams, seed: int, order: list[int], cut: int
) -> None:
    rows = random_rows(seed)
    whole, gradient = terms_and_gradient(rows, params)
    parts = [(part, *terms_and_gradient(take(rows, part), params)) for part in (order[:cut], order[cut:])]
    for name in SUM_NAMES:
        assert math.fsum(terms.sums[name] for _, terms, _ in parts) == pytest.approx(whole.sums[name], abs=1e-11)
    for part, _, part_gradient in parts:
        torch.testing.assert_close(part_gradient, gradient[part], rtol=1e-11, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(params=objectives(), seed=st.integers(0, 2**16), width=st.integers(1, 5))
def test_padding_holds_what_it_likes(params: LossParams, seed: int, width: int) -> None:
    rows = random_rows(seed)
    whole, gradient = terms_and_gradient(rows, params)
    grids = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    wide = {
        name: torch.nn.functional.pad(value, (0, width), value=0 if name == "mask" else math.nan)
        for name, value in grids.items()
        if value is not None and value.dim() == 2
    }
    padded, padded_gradient = terms_and_gradient(dataclasses.replace(rows, **wide), params)
    assert padded.sums == pytest.approx(whole.sums, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(padded_gradient[:, :7], gradient, rtol=1e-12, atol=1e-15)
    assert not padded_gradient[:, 7:].any()


@settings(max_examples=60, deadline=None)
@given(params=objectives(("token", "sequence", "none")), seed=st.integers(0, 2**16))
def test_a_gradient_is_the_slope_of_its_loss(params: LossParams, seed: int) -> None:
    """Not of detached weights: under cispo and the mismatch correction the slope is taken with those held."""
    rows = random_rows(seed, rows=3, length=3)
    _, gradient = terms_and_gradient(rows, params)
    way = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    up, down = (
        terms_and_gradient(dataclasses.replace(rows, logprobs=rows.logprobs + sign * 1e-6 * way), params)[0].loss
        for sign in (1, -1)
    )
    assert ((up - down) / 2e-6).item() == pytest.approx((gradient * way).sum().item(), abs=2e-6)
