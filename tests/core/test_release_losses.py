"""Corners of the release's formulas that few golden vectors visit, worked by hand."""

import math

import pytest
import torch

from cgrpo_core.release_advantages import release_advantages
from cgrpo_core.release_losses import OnOffFlags, aggregate_losses, on_off_loss

NEW = torch.tensor([[0.5, 0.2], [0.9, 0.3]], dtype=torch.float64).log()
OLD = torch.tensor([[0.25, 0.4], [0.9, 0.6]], dtype=torch.float64).log()
ADVANTAGES = torch.ones(2, 2, dtype=torch.float64)
MASK = torch.ones(2, 2, dtype=torch.float64)
FIRST_ROW_OFF = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
NONE_OFF = torch.zeros(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("reshape", "shaped"),
    [
        ("no_reshape", lambda r, p, q: r),
        ("logp", lambda r, p, q: math.log(r)),
        ("p_logp", lambda r, p, q: r + 0.1 * math.log(r)),
        ("square_root", lambda r, p, q: math.sqrt(r)),
        ("pow", lambda r, p, q: r**0.5),
        ("p_div_p_0.3", lambda r, p, q: (p / (p + 0.3)) / (q / (q + 0.3))),
    ],
)
def test_on_policy_reshapes(reshape: str, shaped) -> None:  # type: ignore[no-untyped-def]
    outputs = on_off_loss(OLD, NEW, ADVANTAGES, MASK, NONE_OFF, OnOffFlags(on_policy_reshape=reshape))
    pairs = [(0.5, 0.25), (0.2, 0.4), (0.9, 0.9), (0.3, 0.6)]
    assert outputs["pg_loss"].item() == pytest.approx(-sum(shaped(p / q, p, q) for p, q in pairs) / 2, rel=1e-12)


def test_target_probs_take_the_place_of_the_reshape_on_off_policy_tokens_only() -> None:
    target = torch.tensor([[0.4, 0.5], [0.7, 0.7]], dtype=torch.float64)
    outputs = on_off_loss(OLD, NEW, ADVANTAGES, MASK, FIRST_ROW_OFF, OnOffFlags(), target)
    off = [0.5 / (0.4 + 1e-6), 0.2 / (0.5 + 1e-6)]
    assert outputs["off_ratio_mean"].item() == pytest.approx(sum(off) / 2, rel=1e-12)
    assert outputs["pg_loss"].item() == pytest.approx(-(sum(off) + 1.0 + 0.5) / 2, rel=1e-12)


def test_clamps_of_the_off_policy_weight_are_counted() -> None:
    flags = OnOffFlags(off_policy_reshape="no_reshape", off_max_clip=0.4, off_min_clip=0.3)
    outputs = on_off_loss(OLD, NEW, ADVANTAGES, MASK, FIRST_ROW_OFF, flags)
    assert outputs["off_ratio_mean"].item() == pytest.approx(0.35, rel=1e-12)
    assert outputs["off_ratio_max_clip_frac"].item() == pytest.approx(0.5)
    assert outputs["off_ratio_min_clip_frac"].item() == pytest.approx(0.5)


def test_all_max_clip_drops_likely_tokens_from_the_sum_and_from_the_count() -> None:
    summed = on_off_loss(OLD, NEW, ADVANTAGES, MASK, NONE_OFF, OnOffFlags(all_max_clip=0.6))
    assert summed["pg_loss"].item() == pytest.approx(-(2.0 + 0.5 + 0.5) / 2, rel=1e-12)
    flags = OnOffFlags(all_max_clip=0.6, loss_remove_token_mean=False)
    averaged = on_off_loss(OLD, NEW, ADVANTAGES, MASK, NONE_OFF, flags)
    assert averaged["pg_loss"].item() == pytest.approx(-(2.0 + 0.5 + 0.5) / 3, rel=1e-12)


def test_without_refinements_their_means_are_zero_not_nan() -> None:
    outputs = on_off_loss(OLD, NEW, ADVANTAGES, MASK, NONE_OFF, OnOffFlags())
    for name in ("off_pg_loss", "off_policy_prob", "off_ratio_mean"):
        assert outputs[name].item() == 0.0


def test_unknown_names_are_refused() -> None:
    for flags in (OnOffFlags(on_policy_reshape="p_div_p_0.2"), OnOffFlags(off_policy_reshape="cube")):
        with pytest.raises(ValueError, match="unknown o"):
            on_off_loss(OLD, NEW, ADVANTAGES, MASK, NONE_OFF, flags)
    with pytest.raises(ValueError, match="unknown loss_agg_mode"):
        aggregate_losses(NEW, MASK, "median")
    with pytest.raises(ValueError, match="unknown advantage rule"):
        release_advantages(NEW, MASK, ["a", "a"], rule="gae", divide_by_std=False, epsilon=1e-6)


def test_the_release_keeps_the_raw_score_of_a_lone_row_where_we_give_zero() -> None:
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    mask = torch.ones(1, 2)
    kept = release_advantages(rewards, mask, ["a"], rule="grpo", divide_by_std=False, epsilon=1e-6)
    assert kept.tolist() == [[1.0, 1.0]]
