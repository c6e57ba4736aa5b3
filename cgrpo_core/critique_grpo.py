"""The refinement term of Critique-GRPO (arXiv 2506.03106 v6, eq. of J_refi; gamma from Appendix F).

l_t = -A f(p),   p = exp(logprobs) conditioned on the question alone,   f(p) = p / (p + gamma), or p unshaped.

The term is LUFFY's (arXiv 2504.14945, eq. 7), who takes it on worked solutions of another model: there, as here, the
policy did not sample the row from this prompt, and p stands for the ratio p / 1.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import ShapingParams
from cgrpo_core.loss_rows import ShapedLosses


def shaped_probability(logprobs: Tensor, params: ShapingParams) -> Tensor:
    """Return f(p), any shape, with gradient df/dlogp = gamma p/(p+gamma)^2: at most 1/4, reached at p = gamma.

    p/(p+gamma) is computed as sigmoid(log p - log gamma), the same function without the 0/0 that p = 0 would give.
    """
    if params.kind == "none":
        return logprobs.exp()
    return torch.sigmoid(logprobs - torch.log(torch.as_tensor(params.gamma, dtype=logprobs.dtype)))


def shaped_token_losses(
    logprobs: Tensor, context_logprobs: Tensor | None, advantages: Tensor, active: Tensor, params: ShapingParams
) -> ShapedLosses:
    """Return l_t on active tokens, 0 elsewhere, and f(p). logprobs, active [B, T]; advantages [B]; no context is used.

    A refinement was sampled given question, response and critique; no old log-prob under the question alone belongs to
    it, hence none is used. Where we differ from the printed formula: it clips f(p) to [1-eps, 1+eps], which cannot be
    meant. f(p) < 1/(1+gamma), and with gamma 0.1 it is below 0.8 for every p < 0.4, so that for A < 0 most tokens would
    lose their gradient. The release does not clip this term either.
    """
    advantage = advantages[:, None]
    shaped = shaped_probability(torch.where(active, logprobs, 0.0), params)
    losses = torch.where(active & (advantage != 0), -advantage * shaped, 0.0)
    return ShapedLosses(losses=losses, shaped_probs=torch.where(active, shaped, 0.0).detach())
