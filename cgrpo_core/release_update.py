"""One optimizer step of the official release (zhangxy-2019/critique-GRPO, e8f03a2), its scaling fault included.

Kept to compare with; deepspeed_trainer.py normalises by prompts and a constant instead. The fault: under dynamic
batches every micro-batch was meant to weigh rows/mini_batch_size; the variable that held the rows is overwritten by a
table of 8 metrics, so each weighs 8/mini_batch_size whatever its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.release_losses import OnOffFlags, clipped_policy_loss, masked_mean, on_off_loss

METRICS_TAKEN_FOR_ROWS = 8
OFF_POLICY_NAMES = {
    "off_pg_loss": "off_pg_loss",
    "on_pg_loss": "on_pg_loss",
    "off_pg_clipfrac": "off_pg_clipfrac",
    "off_policy_prob": "off_policy_prob",
    "on_policy_prob": "on_policy_prob",
    "off_ratio_mean": "off_ratio_mean",
    "off_ratio_max_clip_frac": "off_ratio_max_clip_frac",
    "off_ratio_min_clip_frac": "off_ratio_min_clip_frac",
    "pg_loss": "pg_loss",
    "on_pg_clipfrac": "pg_clipfrac",
    "ppo_kl": "ppo_kl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseBatch:
    """Rows of one optimizer step; all tensors [B, T]. The entropy of a token is taken to be -logprobs."""

    old_logprobs: Tensor
    logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    prefix_mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseStep:
    """Gradient of the accumulated loss to logprobs [B, T], and each metric's value a micro-batch."""

    gradient: Tensor
    metrics: dict[str, list[float]]


def release_step(
    batch: ReleaseBatch,
    *,
    micro_batch_sizes: Sequence[int],
    mini_batch_size: int,
    dynamic_batches: bool,
    off_policy_loss: bool,
    entropy_coef: float,
) -> ReleaseStep:
    """Return what the release accumulates over the micro-batches (rows cut in order) before its optimizer step."""
    logprobs = batch.logprobs.detach().clone().requires_grad_(True)
    metrics: dict[str, list[float]] = {}
    start = 0
    for size in micro_batch_sizes:
        rows = slice(start, start + size)
        start += size
        loss, logged = _micro_batch(batch, logprobs, rows, off_policy_loss, entropy_coef)
        scale = 1 / len(micro_batch_sizes)
        if dynamic_batches:
            scale = (METRICS_TAKEN_FOR_ROWS if off_policy_loss else size) / mini_batch_size
        (loss * scale).backward()
        for name, value in logged.items():
            metrics.setdefault(f"actor/{name}", []).append(float(value.detach()))
    gradient = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
    metrics["actor/grad_norm"] = [float(gradient.norm())]
    return ReleaseStep(gradient=gradient, metrics=metrics)


def _micro_batch(
    batch: ReleaseBatch, logprobs: Tensor, rows: slice, off_policy_loss: bool, entropy_coef: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch with its entropy bonus (a token mean of the micro-batch), and what is logged."""
    new, old, mask = logprobs[rows], batch.old_logprobs[rows], batch.mask[rows]
    advantages = batch.advantages[rows]
    bonus = masked_mean(-new, mask.to(new))
    if off_policy_loss:
        terms = on_off_loss(old, new, advantages, mask, batch.prefix_mask[rows], OnOffFlags())
        logged = {OFF_POLICY_NAMES[name]: value for name, value in terms.items()} | {"entropy_loss": bonus}
    else:
        terms = clipped_policy_loss(
            old, new, advantages, mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0, aggregate="token-mean"
        )
        logged = terms
    return terms["pg_loss"] - entropy_coef * bonus, logged
