"""The plain policy gradient of REINFORCE, as RLOO uses it (arXiv 2402.14740, eq. 2 and 7): no ratio, so no clip.

l_t = -A log p_t.

With one optimizer step an iteration this is the gradient of the unclipped ratio too; with several the later steps are
off-policy and nothing here corrects it. RLOO takes the whole completion as one action, hence the sum over its tokens.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import LossParams
from cgrpo_core.loss_rows import RatioLosses


def reinforce_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, active: Tensor, params: LossParams
) -> RatioLosses:
    """Return l_t on active tokens, 0 elsewhere. logprobs, active [B, T]; advantages [B]; old_logprobs are not used."""
    pulled = active & (advantages[:, None] != 0)
    losses = torch.where(pulled, -advantages[:, None] * torch.where(pulled, logprobs, 0.0), 0.0)
    none = torch.zeros_like(active)
    return RatioLosses(losses=losses, clipped_low=none, clipped_high=none)
