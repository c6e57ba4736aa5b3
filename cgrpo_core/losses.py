"""The objective of an update, as a plain sum over rows, so that any split into micro-batches adds up to the whole.

A row is one completion. Its loss is weight * sum_t mask_t * l_t / denominator, where l_t comes from the family that
`LossParams.kind` names: grpo.py (clipped ratio) or critique_grpo.py (clipped ratio and shaped refinements).
Denominators are arguments: nothing here divides by the size of what it happens to be given.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.critique_grpo import RefinementLosses, refinement_token_losses
from cgrpo_core.grpo import RatioLosses, ratio_token_losses
from cgrpo_core.params import LossParams

SUM_NAMES = (
    "loss",
    "entropy_sum",
    "response_tokens",
    "refinement_tokens",
    "clip_low_count",
    "clip_high_count",
    "shaping_sum",
    "refinement_prob_sum",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The loss of one micro-batch (scalar, with gradient) and sums for the metrics.

    Every sum is additive over micro-batches and ranks: entropy_sum over all trained tokens (0 when no entropy was
    given), clip counts over response tokens, shaping_sum (of f(p); 0 under grpo, which shapes nothing) and
    refinement_prob_sum (of p) over refinement tokens.
    """

    loss: Tensor
    sums: dict[str, float]


def loss_denominator(params: LossParams, *, prompts: int, max_response_tokens: int) -> float:
    """Return the denominator that turns the sum over rows into a mean over the prompts of an optimizer step.

    prompts: groups in the whole mini-batch, over all ranks, those without gradient included. token_sum_over_constant
    divides by T = max_response_tokens besides (paper and Dr. GRPO: a constant, so that no row's weight depends on its
    length); sequence_mean divides each row by its own length inside `policy_loss` instead (GRPO's 1/|y|).
    """
    if prompts < 1 or max_response_tokens < 1:
        raise ValueError(f"a mini-batch of {prompts} prompts with {max_response_tokens} response tokens is empty")
    return float(prompts * max_response_tokens if params.aggregate == "token_sum_over_constant" else prompts)


def policy_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    entropy: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    is_refinement: Tensor,
    mask: Tensor,
    params: LossParams,
    denominator: float,
) -> LossTerms:
    """Return the loss of a micro-batch: sum of its rows' weight * sum_t mask (l_t - entropy_coef H_t) / denominator.

    logprobs, old_logprobs, mask [B, T]; entropy [B, T] or None; advantages, weights, is_refinement [B]. What stands at
    masked positions, and in `old_logprobs` of shaped rows, has no influence, NaN included. Under `sequence_mean` each
    row is divided by its own number of tokens too. There is no KL term: `LossParams` refuses a kl_coef. Raises
    ValueError for a denominator that is not positive, and for an entropy_coef without entropy.
    """
    _validate_call(entropy, params, denominator)
    valid = mask.bool()
    refinement = is_refinement.bool()
    shaped = refinement if params.kind == "critique_grpo" else torch.zeros_like(refinement)
    new = _at_valid(logprobs, valid)
    advantage = advantages.to(new)

    ratio = ratio_token_losses(new, _at_valid(old_logprobs, valid), advantage, valid & ~shaped[:, None], params)
    shape = refinement_token_losses(new, advantage, valid & shaped[:, None], params.shaping)
    token_losses = ratio.losses + shape.losses
    entropies = None if entropy is None else _at_valid(entropy, valid)
    if entropies is not None and params.entropy_coef != 0:
        token_losses = token_losses - params.entropy_coef * entropies

    rows = torch.where(valid, token_losses, 0.0).sum(dim=1)
    if params.aggregate == "sequence_mean":
        rows = rows / valid.sum(dim=1).clamp(min=1)
    loss = (weights.to(rows) * rows).sum() / denominator
    sums = _sums(loss, entropies, new, valid, refinement, ratio, shape)
    return LossTerms(loss=loss, sums=sums)


def _sums(
    loss: Tensor,
    entropies: Tensor | None,
    logprobs: Tensor,
    valid: Tensor,
    refinement: Tensor,
    ratio: RatioLosses,
    shape: RefinementLosses,
) -> dict[str, float]:
    on_responses = valid & ~refinement[:, None]
    on_refinements = valid & refinement[:, None]
    values = (
        loss,
        loss.new_zeros(()) if entropies is None else entropies.sum(),
        on_responses.sum(),
        on_refinements.sum(),
        (ratio.clipped_low & on_responses).sum(),
        (ratio.clipped_high & on_responses).sum(),
        shape.shaped_probs.sum(),
        torch.where(on_refinements, logprobs, -torch.inf).exp().sum(),
    )
    return {name: float(value.detach()) for name, value in zip(SUM_NAMES, values, strict=True)}


def _validate_call(entropy: Tensor | None, params: LossParams, denominator: float) -> None:
    if not 0 < denominator < math.inf:
        raise ValueError(f"the denominator of the loss is {denominator}; it must be a finite number above 0")
    if entropy is None and params.entropy_coef != 0:
        raise ValueError("loss.entropy_coef is not 0, but no entropy was computed")


def _at_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Return `values` [B, T] with 0 where not valid, in float32 at least: bfloat16 cannot tell a ratio 1.003 from 1."""
    wide = values if values.dtype == torch.float64 else values.float()
    return torch.where(valid, wide, 0.0)
