"""The two losses of the official release (zhangxy-2019/critique-GRPO, e8f03a2), to its numbers, kept to compare with.

Nothing here trains: losses.py does. Where the release differs from it: it normalises by what a micro-batch happens to
hold, its clip fractions and KL count refinements too, and refinements share one sum with responses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COUNT_FLOOR = 1e-8  # the release adds it to every token count


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOffFlags:
    """The flags of the release's loss, by its names. Defaults are those of its run script: no clip, token sum / T."""

    cliprange: float = 0.2
    clip_upper_bound: float = 1.0
    off_cliprange: float | None = 0.2  # read by nothing in the release, and nothing here
    off_normalize: bool = False  # the same
    off_abs_cliprange: float | None = None  # the same
    off_max_clip: float | None = None
    off_min_clip: float | None = None
    all_max_clip: float | None = None
    off_policy_reshape: str = "p_div_p_0.1"
    off_policy_reshape_weight: float = 0.1
    off_policy_reshape_pow_exp: float = 0.5
    on_policy_reshape: str = "no_reshape"
    on_policy_reshape_weight: float = 0.1
    on_policy_reshape_pow_exp: float = 0.5
    loss_remove_token_mean: bool = True
    loss_remove_clip: bool = True


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask` (0 or 1, same shape); 0 when nothing is there.

    The count is float32 whatever `values` are, as in the release: there the floor changes no count but that of nothing.
    """
    return (values * mask).sum() / (mask.sum().float() + COUNT_FLOOR)


def on_off_loss(
    old_logprobs: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    prefix_mask: Tensor,
    flags: OnOffFlags,
    target_probs: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the release's 11 scalars; `pg_loss` carries the gradient. All tensors [B, T]; masks hold 0 or 1.

    prefix_mask marks off-policy tokens: every token of a refinement row, or the prefix of a row (LUFFY, arXiv
    2504.14945, where the loss comes from). Raises ValueError for a reshape that is not known.
    """
    valid, off = mask.to(logprobs), prefix_mask.to(logprobs)
    on_valid, off_valid = (1 - off) * valid, off * valid
    on_losses, on_clip_fraction = _on_policy(old_logprobs, logprobs, advantages, valid, flags)
    off_ratio, clip_fractions = _off_policy(logprobs, off, off_valid, flags, target_probs)
    off_losses = -advantages * off_ratio
    losses = off_losses * off + on_losses * (1 - off)
    kept = valid if flags.all_max_clip is None else valid * (logprobs.exp() <= flags.all_max_clip).to(valid)
    total = (losses * kept).sum() / losses.shape[-1] if flags.loss_remove_token_mean else masked_mean(losses, kept)
    return {
        "pg_loss": total,
        "off_pg_loss": masked_mean(off_losses, off_valid),
        "on_pg_loss": masked_mean(on_losses, on_valid),
        "off_pg_clipfrac": torch.zeros_like(total),
        "on_pg_clipfrac": on_clip_fraction,
        "ppo_kl": masked_mean(old_logprobs - logprobs, valid),
        "off_policy_prob": masked_mean(logprobs.exp(), off_valid),
        "on_policy_prob": masked_mean(old_logprobs.exp(), on_valid),
        "off_ratio_mean": masked_mean(off_ratio, off_valid),
        **clip_fractions,
    }


def _gamma(reshape: str) -> float | None:
    """Return g of the reshape `p_div_p_g`, None for another one."""
    prefix = "p_div_p_"
    return float(reshape.removeprefix(prefix)) if reshape in ("p_div_p_0.1", "p_div_p_0.3", "p_div_p_0.5") else None


def _on_policy(old: Tensor, new: Tensor, advantages: Tensor, valid: Tensor, flags: OnOffFlags) -> tuple[Tensor, Tensor]:
    """Return token losses [B, T] and the clipped fraction (over all rows, as the release counts it)."""
    ratio = _on_ratio(old, new, flags)
    losses = -advantages * ratio
    if flags.loss_remove_clip:
        return losses, torch.zeros_like(losses[..., :1].sum())
    upper = max(flags.clip_upper_bound, 1.0 + flags.cliprange)
    clipped = -advantages * ratio.clamp(1.0 - flags.cliprange, upper)
    return torch.maximum(losses, clipped), masked_mean((clipped > losses).to(valid), valid)


def _on_ratio(old: Tensor, new: Tensor, flags: OnOffFlags) -> Tensor:
    reshape, log_ratio = flags.on_policy_reshape, new - old
    gamma = _gamma(reshape)
    if gamma is not None:
        return (new.exp() / (new.exp() + gamma)) / (old.exp() / (old.exp() + gamma))
    if reshape == "no_reshape":
        return log_ratio.exp()
    if reshape == "logp":
        return log_ratio
    if reshape == "p_logp":
        return log_ratio.exp() + flags.on_policy_reshape_weight * log_ratio
    if reshape == "square_root":
        return log_ratio.exp().sqrt()
    if reshape == "pow":
        return log_ratio.exp().pow(flags.on_policy_reshape_pow_exp)
    raise ValueError(f"unknown on_policy_reshape {reshape!r}")


def _off_ratio(new: Tensor, flags: OnOffFlags) -> Tensor:
    reshape, probs = flags.off_policy_reshape, new.exp()
    gamma = _gamma(reshape)
    if gamma is not None:
        return probs / (probs + gamma)
    if reshape == "no_reshape":
        return probs
    if reshape == "logp":
        return flags.off_policy_reshape_weight * new
    if reshape == "p_logp":
        return probs + flags.off_policy_reshape_weight * new
    if reshape == "square_root":
        return probs.sqrt()
    if reshape == "pow":
        return probs.pow(flags.off_policy_reshape_pow_exp)
    raise ValueError(f"unknown off_policy_reshape {reshape!r}")


def _off_policy(
    new: Tensor, off: Tensor, off_valid: Tensor, flags: OnOffFlags, target_probs: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return f(p) [B, T] after its clamps, and how often each clamp held over valid off-policy tokens."""
    ratio = _off_ratio(new, flags) if target_probs is None else new.exp() / (target_probs + 1e-6) * off
    at_max = at_min = torch.zeros_like(ratio)
    if flags.off_max_clip is not None:
        ratio = ratio.clamp(max=flags.off_max_clip)
        at_max = (ratio == flags.off_max_clip).to(off)
    if flags.off_min_clip is not None:
        ratio = ratio.clamp(min=flags.off_min_clip)
        at_min = (ratio == flags.off_min_clip).to(off)
    fractions = {
        "off_ratio_max_clip_frac": masked_mean(at_max, off_valid),
        "off_ratio_min_clip_frac": masked_mean(at_min, off_valid),
    }
    return ratio, fractions


def clipped_policy_loss(
    old_logprobs: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    aggregate: str,
) -> dict[str, Tensor]:
    """Return pg_loss (the release's GRPO loss, with gradient), pg_clipfrac, ppo_kl, pg_clipfrac_lower; tensors [B, T].

    dual_clip bounds the loss of a token with A < 0 by -A * dual_clip (arXiv 1912.09729, eq. 5). Raises ValueError for
    an aggregate that `aggregate_losses` does not know.
    """
    valid = mask.to(logprobs)
    ratio = (logprobs - old_logprobs).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = torch.maximum(plain, clipped)
    bound = -advantages * dual_clip
    lower = (losses > bound) & (advantages < 0)
    bounded = torch.where(advantages < 0, torch.minimum(bound, losses), losses)
    return {
        "pg_loss": aggregate_losses(bounded, valid, aggregate),
        "pg_clipfrac": masked_mean((clipped > plain).to(valid), valid),
        "ppo_kl": masked_mean(old_logprobs - logprobs, valid),
        "pg_clipfrac_lower": masked_mean(lower.to(valid), valid),
    }


def aggregate_losses(losses: Tensor, mask: Tensor, aggregate: str) -> Tensor:
    """Return one number for token losses [B, T], over valid tokens. Raises ValueError for another mode."""
    if aggregate == "token-mean":
        return masked_mean(losses, mask)
    sums = (losses * mask).sum(dim=-1)
    if aggregate == "seq-mean-token-sum":
        return sums.mean()
    if aggregate == "seq-mean-token-mean":
        return (sums / mask.sum(dim=-1)).mean()
    if aggregate == "seq-mean-token-sum-norm":
        return sums.sum() / losses.shape[-1]
    raise ValueError(f"unknown loss_agg_mode {aggregate!r}")
