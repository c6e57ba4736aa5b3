"""What a loss is computed from: rows of completions as tensors, what each family of losses returns, and its sums."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """B completions of up to T tokens, padded anywhere. What stands where `mask` is 0 has no influence, NaN included.

    off_policy: rows that the policy did not sample from this prompt: refinements, worked solutions. Their
    old_logprobs are used only where `LossParams.kind` puts a ratio on every row, their sampling_logprobs never.
    """

    logprobs: Tensor  # [B, T], with gradient
    old_logprobs: Tensor  # [B, T], by the trainer before the first optimizer step
    advantages: Tensor  # [B]
    weights: Tensor  # [B]
    off_policy: Tensor  # [B], 0 or 1
    mask: Tensor  # [B, T], 0 or 1
    entropy: Tensor | None = None  # [B, T], with gradient
    sampling_logprobs: Tensor | None = None  # [B, T], by the sampler; for `mismatch`
    ref_logprobs: Tensor | None = None  # [B, T], by the reference policy; for `kl_coef`
    context_logprobs: Tensor | None = None  # [B, T], of off_policy rows given what they were sampled from; for ICRL
    divergences: Tensor | None = None  # [B, T], with gradient, from what the critique would have said; for SDPO


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioLosses:
    """Token losses [B, T] (0 where not active) and which active tokens [B, T] the clip changed."""

    losses: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedLosses:
    """Token losses of off_policy rows and what shaped them (f(p), or a weight), both [B, T] and 0 where not active.

    The latter is without gradient.
    """

    losses: Tensor
    shaped_probs: Tensor


def at_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Return `values` [B, T] with 0 where not valid, in float32 at least: bfloat16 cannot tell a ratio 1.003 from 1."""
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.where(valid, wide, 0.0)


def row_means(values: Tensor, valid: Tensor) -> Tensor:
    """Return [B]: the mean of `values` [B, T] over the valid tokens of each row, 0 for a row without any."""
    return torch.where(valid, values, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
