"""Truncated importance weights between sampler and trainer, for engines whose log-probs differ (bfloat16).

w_t = min(exp(old_logprobs - sampling_logprobs), cap), detached, times the loss of each token that the policy sampled.

A response is a sample of what the sampler's kernels computed, not of what the trainer's do; the weight takes it back to
the trainer's policy, and the cap bounds its variance (truncated importance sampling, Ionides 2008; cap 2 is customary).
In float32 the two agree to 1e-5 and the weight is 1 to that precision, so the default is none: the last bits of
sampling log-probs depend on what shared the sampler's batch, and would then be in the weights of the policy.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import MismatchParams


def mismatch_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, on_policy: Tensor, params: MismatchParams
) -> tuple[Tensor, Tensor]:
    """Return the weights (1 where not on_policy) and which of them the cap cut, all [B, T], without gradient.

    on_policy: tokens that were sampled from this prompt. Refinements were sampled from another one, solutions from
    none: for them the quotient would be no mismatch of engines.
    """
    log_weights = torch.where(on_policy, (old_logprobs - sampling_logprobs).detach(), 0.0)
    weights = log_weights.exp()
    return weights.clamp(max=params.cap), on_policy & (weights > params.cap)
