"""From token losses to one number: a plain sum over rows whose denominators are known before any row is computed.

Hence any split of an optimizer step's rows into micro-batches and ranks adds up to the same loss.

    token_sum_over_constant   sum_i w_i sum_t l_it / (prompts T)              paper; Dr. GRPO, arXiv 2503.20783
    sequence_mean             sum_i w_i (sum_t l_it / |y_i|) / prompts        GRPO, arXiv 2402.03300
    token_mean                sum_i w_i sum_t l_it / sum_i w_i |y_i|          DAPO, arXiv 2503.14476, eq. 8

T is the token limit, a constant, so that no row's weight depends on its length. token_mean is over all rows of the
optimizer step, those without gradient included; DAPO prints it over one group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.learning_params import LossParams
from cgrpo_core.loss_rows import row_means

RELEASE_METRICS = 8  # the release takes the number of its logged metrics for the rows of a micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """What an optimizer step holds over all its micro-batches and ranks, rows without gradient included."""

    prompts: int
    rows: int
    tokens: int
    weighted_tokens: float  # sum over rows of weight * tokens
    max_response_tokens: int  # T


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """What the sums over rows are divided by: token losses, and entropies where they are not part of those."""

    losses: float
    entropy: float


def step_size(lengths: Sequence[int], weights: Sequence[float], *, prompts: int, max_response_tokens: int) -> StepSize:
    """Return the size of a step from the length and weight of each of its rows."""
    return StepSize(
        prompts=prompts,
        rows=len(lengths),
        tokens=sum(lengths),
        weighted_tokens=float(sum(w * n for w, n in zip(weights, lengths, strict=True))),
        max_response_tokens=max_response_tokens,
    )


def denominators(params: LossParams, size: StepSize) -> Denominators:
    """Return the denominators of an optimizer step. Raises ValueError for one without prompts or tokens.

    scaling `release` reproduces the step of the authors' release, whose every micro-batch weighs 8 / rows of the step
    whatever its own size (8 being the number of its metrics, taken for the rows by mistake): its policy term is
    8 times the mean over rows of (sum over tokens / T), its entropy term 8 / rows times the sum of the micro-batches'
    token means, so that it depends on how many micro-batches there are. Kept to compare with, and for nothing else.
    """
    if min(size.prompts, size.max_response_tokens, size.tokens) < 1 or not size.weighted_tokens > 0:
        raise ValueError(f"an optimizer step over {size} is empty")
    if params.scaling == "release":
        share = size.rows / RELEASE_METRICS
        return Denominators(losses=share * size.max_response_tokens, entropy=share)
    if params.aggregate == "token_mean":
        return Denominators(losses=size.weighted_tokens, entropy=float(size.tokens))
    constant = size.max_response_tokens if params.aggregate == "token_sum_over_constant" else 1
    return Denominators(losses=float(size.prompts * constant), entropy=float(size.tokens))


def weighted_sum(token_losses: Tensor, weights: Tensor, valid: Tensor, params: LossParams) -> Tensor:
    """Return the scalar sum over rows of weight * (sum, or under sequence_mean mean, of its token losses [B, T])."""
    if params.aggregate == "sequence_mean":
        rows = row_means(token_losses, valid)
    else:
        rows = torch.where(valid, token_losses, 0.0).sum(dim=1)
    return (weights.to(rows) * rows).sum()


def entropy_bonus(entropies: Tensor, valid: Tensor, params: LossParams, denominator: float) -> Tensor:
    """Return the scalar that entropy_coef multiplies under `token_mean`: the step's mean entropy of a token.

    entropies [B, T], 0 where not valid. Under scaling `release` it is the sum over micro-batches of their own means.
    """
    total = entropies.sum()
    return (total / valid.sum().clamp(min=1) if params.scaling == "release" else total) / denominator
