"""The detached, clipped weight of CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): no token loses its gradient.

l_t = -sg[clip(r, 1 - clip_low, 1 + clip_high)] A log p_t,   r = exp(logprobs - old_logprobs), sg: without gradient.

A token whose ratio leaves the clip is not dropped, as under PPO, but weighs what the edge weighs. The paper tunes the
upper edge alone and sets no lower one: clip_low None.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import LossParams
from cgrpo_core.loss_rows import RatioLosses


def detached_ratio_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, active: Tensor, params: LossParams
) -> RatioLosses:
    """Return l_t on active tokens, 0 elsewhere. logprobs, old_logprobs, active [B, T]; advantages [B]."""
    pulled = active & (advantages[:, None] != 0)
    ratio = torch.where(pulled, (logprobs - old_logprobs).detach(), 0.0).exp()
    low = 0.0 if params.clip_low is None else 1 - params.clip_low
    high = torch.inf if params.clip_high is None else 1 + params.clip_high
    losses = -ratio.clamp(low, high) * advantages[:, None] * torch.where(pulled, logprobs, 0.0)
    return RatioLosses(
        losses=torch.where(pulled, losses, 0.0),
        clipped_low=pulled & (ratio < low),
        clipped_high=pulled & (ratio > high),
    )
