"""What must not matter to the loss: the cut into micro-batches, the order of rows, padding, rows without advantage."""

import dataclasses
import math

import pytest
import torch
from loss_rows import GRPO, NO_CLIP, PAPER, SUCCESSORS, VARIANTS, hand_rows, random_rows, take, terms_and_gradient

from cgrpo_core.losses import SUM_NAMES
from cgrpo_core.params import LossParams


@pytest.mark.parametrize("params", [*VARIANTS, *SUCCESSORS])
def test_any_split_into_micro_batches_adds_up_to_the_whole(params: LossParams) -> None:
    rows = random_rows(11, rows=9)
    whole, gradient = terms_and_gradient(rows, params)
    for split in ([[0], [1, 2, 3, 4, 5, 6, 7, 8]], [[8, 1, 4], [0, 2, 7, 3], [5, 6]], [[row] for row in range(9)]):
        parts = [(part, *terms_and_gradient(take(rows, part), params)) for part in split]
        for name in SUM_NAMES:
            assert math.fsum(terms.sums[name] for _, terms, _ in parts) == pytest.approx(whole.sums[name], abs=1e-12)
        for part, _, part_gradient in parts:
            torch.testing.assert_close(part_gradient, gradient[part], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("params", [*VARIANTS, *SUCCESSORS])
def test_the_order_of_rows_does_not_matter(params: LossParams) -> None:
    rows = random_rows(12)
    order = [4, 0, 5, 2, 1, 3]
    whole, gradient = terms_and_gradient(rows, params)
    shuffled, shuffled_gradient = terms_and_gradient(take(rows, order), params)
    torch.testing.assert_close(shuffled.loss, whole.loss, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(shuffled_gradient, gradient[order], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("params", [*VARIANTS, *SUCCESSORS])
def test_what_stands_at_padding_does_not_matter_even_if_it_is_not_a_number(params: LossParams) -> None:
    rows = random_rows(13)
    whole, gradient = terms_and_gradient(rows, params)
    wide = {
        name: torch.nn.functional.pad(getattr(rows, name), (0, 3), value=fill)
        for name, fill in (
            *(
                ("logprobs", math.nan),
                ("old_logprobs", -math.inf),
                ("sampling_logprobs", math.nan),
                ("ref_logprobs", math.nan),
            ),
            ("context_logprobs", math.nan),
            *(("entropy", math.nan), ("mask", 0)),
        )
    }
    padded, padded_gradient = terms_and_gradient(dataclasses.replace(rows, **wide), params)
    assert padded.sums == pytest.approx(whole.sums, rel=1e-13)
    torch.testing.assert_close(padded_gradient[:, :7], gradient, rtol=1e-13, atol=0)
    assert torch.equal(padded_gradient[:, 7:], torch.zeros(6, 3, dtype=torch.float64))


def test_old_logprobs_of_a_shaped_refinement_are_never_looked_at() -> None:
    rows = hand_rows()
    blind = dataclasses.replace(rows, old_logprobs=rows.old_logprobs.clone())
    blind.old_logprobs[1] = math.nan
    whole, gradient = terms_and_gradient(rows, PAPER)
    other, other_gradient = terms_and_gradient(blind, PAPER)
    assert other.loss.item() == whole.loss.item()
    assert torch.equal(other_gradient, gradient)


@pytest.mark.parametrize("params", [PAPER, NO_CLIP, GRPO])
def test_a_zero_advantage_gives_exactly_zero_gradient_even_where_the_ratio_overflows(params: LossParams) -> None:
    rows = random_rows(14)
    rows = dataclasses.replace(rows, advantages=torch.zeros_like(rows.advantages))
    rows.old_logprobs[0, 0] = -2000.0
    terms, gradient = terms_and_gradient(rows, params)
    assert terms.loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_clipped_token_whose_ratio_overflows_has_no_gradient_instead_of_nan() -> None:
    rows = dataclasses.replace(hand_rows(), logprobs=hand_rows().logprobs.float())
    rows.old_logprobs[0, 0] = -2000.0
    terms, gradient = terms_and_gradient(rows, PAPER)
    assert torch.isfinite(terms.loss)
    assert gradient[0, 0].item() == 0.0


def test_weights_and_denominator_scale_the_loss_linearly() -> None:
    rows = random_rows(15)
    base, _ = terms_and_gradient(rows, PAPER, denominator=10.0)
    doubled, _ = terms_and_gradient(dataclasses.replace(rows, weights=2 * rows.weights), PAPER, denominator=40.0)
    assert doubled.loss.item() == pytest.approx(base.loss.item() / 2, rel=1e-13)
