"""The sequence ratio of GSPO (arXiv 2507.18071, eq. 5 to 7): one ratio a completion, clipped as a whole.

l_t = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),   s = exp(mean over the row's tokens of (logprobs - old)).

The edges are far narrower than a token's (paper: 3e-4 and 4e-4), because a mean of log-ratios hardly moves. Every token
of a row has the same loss, so that `sequence_mean` gives back the one term a completion that the paper writes.
"""

import torch
from torch import Tensor

from cgrpo_core.grpo import clipped_surrogate
from cgrpo_core.learning_params import LossParams
from cgrpo_core.loss_rows import RatioLosses, row_means


def sequence_ratio_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, active: Tensor, params: LossParams
) -> RatioLosses:
    """Return l_t on active tokens, 0 elsewhere. logprobs, old_logprobs, active [B, T]; advantages [B].

    A row's length is the number of its active tokens: rows are active as a whole.
    """
    pulled = active & (advantages[:, None] != 0)
    mean = row_means(torch.where(pulled, logprobs - old_logprobs, 0.0), pulled)
    log_ratio = torch.where(pulled, mean[:, None], 0.0)
    return clipped_surrogate(log_ratio, advantages, pulled, params)
