"""RLTF, by self-distillation (RLTF-SD, arXiv 2602.02482): a refinement as if it had answered the question at once.

l_t = -A log p_t,   p conditioned on the question alone,   A = R(refinement) - mean of R over the first attempts.

No importance weight p(y | q) / p(y | q, critique): the paper accepts that bias, because the weight's variance over a
whole completion is worse (advantage-weighted regression). The first attempts are the baseline of refinements too
(advantage.baseline first_attempt_mean): the mean of the refinements themselves would leave no gradient where all of
them are right, which is where there is most to learn.
Where we differ: the paper also trains the second attempt as such, given the critique, and RLTF-FM predicts the critique
as an auxiliary loss; here the first attempts and the self-distillation term alone are trained. Not established: the
weight between the terms; ours is that of advantage.weights.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import ShapingParams
from cgrpo_core.loss_rows import ShapedLosses


def imitated_token_losses(
    logprobs: Tensor, context_logprobs: Tensor | None, advantages: Tensor, active: Tensor, params: ShapingParams
) -> ShapedLosses:
    """Return l_t on active tokens, 0 elsewhere, and p. logprobs, active [B, T]; advantages [B]; no context is used."""
    pulled = active & (advantages[:, None] != 0)
    losses = torch.where(pulled, -advantages[:, None] * torch.where(pulled, logprobs, 0.0), 0.0)
    return ShapedLosses(losses=losses, shaped_probs=torch.where(active, logprobs, -torch.inf).exp().detach())
