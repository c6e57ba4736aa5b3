"""The clipped ratio of GRPO (arXiv 2402.03300, eq. 3; its KL term is kl.py's), as PPO has it (arXiv 1707.06347, eq. 7).

l_t = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),   r = exp(logprobs - old_logprobs).
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import LossParams
from cgrpo_core.loss_rows import RatioLosses


def token_ratio_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, active: Tensor, params: LossParams
) -> RatioLosses:
    """Return l_t on active tokens, 0 elsewhere. logprobs, old_logprobs, active [B, T]; advantages [B].

    With a zero advantage nothing is computed, so that the gradient is exactly 0.
    """
    pulled = active & (advantages[:, None] != 0)
    return clipped_surrogate(torch.where(pulled, logprobs - old_logprobs, 0.0), advantages, pulled, params)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, pulled: Tensor, params: LossParams) -> RatioLosses:
    """Return -min(r A, clip(r) A) where pulled, 0 elsewhere. log_ratio (0 where not pulled), pulled [B, T].

    The min is written as a choice: a token outside the clip on the side that its advantage pushes to is the constant
    edge, any other is r A. Value and gradient are those of the formula (at the very edge, r A with its full gradient),
    but a ratio that overflows cannot turn a clipped token's zero gradient into NaN. Two edges: DAPO, arXiv 2503.14476;
    both None: no clip.
    """
    advantage = advantages[:, None]
    clipped_low = clipped_high = torch.zeros_like(pulled)
    if params.clip_low is not None and params.clip_high is not None:
        ratio = log_ratio.detach().exp()
        clipped_low = pulled & (advantage < 0) & (ratio < 1 - params.clip_low)
        clipped_high = pulled & (advantage > 0) & (ratio > 1 + params.clip_high)
        log_ratio = torch.where(clipped_low | clipped_high, 0.0, log_ratio)
    surrogate = log_ratio.exp()
    if params.clip_low is not None and params.clip_high is not None:
        surrogate = torch.where(clipped_low, 1 - params.clip_low, surrogate)
        surrogate = torch.where(clipped_high, 1 + params.clip_high, surrogate)
    losses = torch.where(pulled, -advantage * surrogate, 0.0)
    return RatioLosses(losses=losses, clipped_low=clipped_low, clipped_high=clipped_high)
