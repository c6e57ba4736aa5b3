"""The objective of an update: ratio rule x clip x shaping x mismatch correction x aggregation, one choice of each.

A row is one completion. Its token losses come from the ratio rule that `LossParams.ratio` names (grpo.py, gspo.py,
cispo.py, reinforce.py), or, for rows that the policy did not sample from this prompt, from the shaping that
`LossParams.shaping` names (critique_grpo.py, rltf.py, icrl.py); those of the kinds `sft` and `sdpo` need neither
(sft.py, sdpo.py). aggregation.py adds them up. Denominators are arguments: nothing here divides by the size of what it
happens to be given, so that any split into micro-batches adds up to the whole.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.aggregation import Denominators, entropy_bonus, weighted_sum
from cgrpo_core.cispo import detached_ratio_losses
from cgrpo_core.critique_grpo import shaped_token_losses
from cgrpo_core.grpo import token_ratio_losses
from cgrpo_core.gspo import sequence_ratio_losses
from cgrpo_core.icrl import reweighted_token_losses
from cgrpo_core.kl import kl_penalty
from cgrpo_core.learning_params import LossParams, ShapingParams
from cgrpo_core.loss_rows import LossRows, RatioLosses, ShapedLosses, at_valid
from cgrpo_core.mismatch import mismatch_weights
from cgrpo_core.reinforce import reinforce_losses
from cgrpo_core.rltf import imitated_token_losses
from cgrpo_core.sdpo import distilled_losses
from cgrpo_core.sft import cross_entropies

SUM_NAMES = (
    "loss",
    "entropy_sum",
    "response_tokens",
    "off_policy_tokens",
    "clip_low_count",
    "clip_high_count",
    "shaping_sum",
    "off_policy_prob_sum",
    "mismatch_sum",
    "mismatch_capped_count",
    "kl_sum",
    "divergence_sum",
)

RATIO_RULES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, LossParams], RatioLosses]] = {
    "token": token_ratio_losses,
    "sequence": sequence_ratio_losses,
    "cispo": detached_ratio_losses,
    "none": reinforce_losses,
}

SHAPINGS: dict[str, Callable[[Tensor, Tensor | None, Tensor, Tensor, ShapingParams], ShapedLosses]] = {
    "p_over_p_plus_gamma": shaped_token_losses,
    "none": shaped_token_losses,
    "log_p": imitated_token_losses,
    "context_ratio": reweighted_token_losses,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The loss of one micro-batch (scalar, with gradient) and sums for the metrics.

    Every sum is additive over micro-batches and ranks. entropy_sum is over all trained tokens (0 when no entropy was
    given); clip counts, mismatch_sum (of weights), mismatch_capped_count and kl_sum (0 without the term that they
    belong to) over response tokens; shaping_sum (of f(p), or of weights; 0 where nothing is shaped) and
    off_policy_prob_sum (of p) over tokens of refinements and solutions; divergence_sum over all tokens of SDPO.
    """

    loss: Tensor
    sums: dict[str, float]


def policy_loss(rows: LossRows, params: LossParams, divide_by: Denominators) -> LossTerms:
    """Return the loss of a micro-batch: its rows' weighted token losses, over the denominators of the whole step.

    A token's loss is that of its rule, times its mismatch weight, plus kl_coef * KL on responses, less
    entropy_coef * H where the bonus is aggregated as the loss is. Raises ValueError for a denominator that is not
    positive, and for a term whose log-probs or entropy were not given.
    """
    loss, sums = loss_and_sums(rows, params, divide_by)
    return LossTerms(loss=loss, sums={name: float(sums[name].detach()) for name in SUM_NAMES})


def loss_and_sums(rows: LossRows, params: LossParams, divide_by: Denominators) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what policy_loss does, with the sums as tensors: nothing waits for the device."""
    _validate_call(rows, params, divide_by)
    valid = rows.mask.bool()
    off_policy = rows.off_policy.bool()
    on_tokens, off_tokens = valid & ~off_policy[:, None], valid & off_policy[:, None]
    none = torch.zeros_like(valid)
    shaped = off_tokens if params.kind == "critique_grpo" else none
    by_ratio = none if params.kind in ("sft", "sdpo") else valid & ~shaped
    new, old = at_valid(rows.logprobs, valid), at_valid(rows.old_logprobs, valid)
    advantage = rows.advantages.to(new)

    ratio = RATIO_RULES[params.ratio](new, old, advantage, by_ratio, params)
    token_losses, extra = _corrected(ratio.losses, new, old, on_tokens, rows, params)
    context = None if rows.context_logprobs is None else at_valid(rows.context_logprobs, shaped)
    shape = SHAPINGS[params.shaping.kind](new, context, advantage, shaped, params.shaping)
    token_losses = token_losses + shape.losses
    if params.kind == "sft":
        token_losses = token_losses + cross_entropies(new, valid)
    divergences = None if rows.divergences is None else at_valid(rows.divergences, valid)
    if params.kind == "sdpo":
        token_losses = token_losses + distilled_losses(divergences, valid)
    entropies = None if rows.entropy is None else at_valid(rows.entropy, valid)
    bonus: Tensor | None = None
    if entropies is not None and params.entropy_coef != 0:
        if params.entropy_aggregate == "as_loss":
            token_losses = token_losses - params.entropy_coef * entropies
        else:
            bonus = params.entropy_coef * entropy_bonus(entropies, valid, params, divide_by.entropy)

    loss = weighted_sum(token_losses, rows.weights, valid, params) / divide_by.losses
    loss = loss if bonus is None else loss - bonus
    sums = {
        "loss": loss,
        "entropy_sum": loss.new_zeros(()) if entropies is None else entropies.sum(),
        "response_tokens": on_tokens.sum(),
        "off_policy_tokens": off_tokens.sum(),
        "clip_low_count": (ratio.clipped_low & on_tokens).sum(),
        "clip_high_count": (ratio.clipped_high & on_tokens).sum(),
        "shaping_sum": shape.shaped_probs.sum(),
        "off_policy_prob_sum": torch.where(off_tokens, new, -torch.inf).exp().sum(),
        "divergence_sum": loss.new_zeros(()) if divergences is None else divergences.sum(),
        **extra,
    }
    return loss, sums


def _corrected(
    losses: Tensor, new: Tensor, old: Tensor, on_tokens: Tensor, rows: LossRows, params: LossParams
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return token losses [B, T] with mismatch weights and KL penalty on response tokens, and the sums of both."""
    zero = losses.new_zeros(())
    extra = {"mismatch_sum": zero, "mismatch_capped_count": zero, "kl_sum": zero}
    if params.mismatch.kind == "truncated" and rows.sampling_logprobs is not None:
        weights, capped = mismatch_weights(old, at_valid(rows.sampling_logprobs, on_tokens), on_tokens, params.mismatch)
        losses = losses * weights
        extra |= {"mismatch_sum": weights[on_tokens].sum(), "mismatch_capped_count": capped.sum()}
    if params.kl_coef != 0 and rows.ref_logprobs is not None:
        # The estimator expects tokens sampled from the policy: those of responses.
        kl = kl_penalty(torch.where(on_tokens, new, 0.0), at_valid(rows.ref_logprobs, on_tokens), "low_var_kl")
        losses = losses + params.kl_coef * kl
        extra |= {"kl_sum": kl.sum()}
    return losses, extra


def _validate_call(rows: LossRows, params: LossParams, divide_by: Denominators) -> None:
    for denominator in (divide_by.losses, divide_by.entropy):
        if not 0 < denominator < math.inf:
            raise ValueError(f"a denominator of the loss is {denominator}; it must be a finite number above 0")
    if rows.entropy is None and params.entropy_coef != 0:
        raise ValueError("loss.entropy_coef is not 0, but no entropy was computed")
    if rows.sampling_logprobs is None and params.mismatch.kind != "none":
        raise ValueError("loss.mismatch is truncated, but no sampling_logprobs were given")
    if rows.ref_logprobs is None and params.kl_coef != 0:
        raise ValueError("loss.kl_coef is not 0, but there are no log-probs of a reference policy")
