"""ICRL's solver (arXiv 2605.15224): refinement tokens weighted by how much the policy would say them unasked.

l_t = -A w_t log p_t,   w_t = min( p(y_t | q, y_<t) / p(y_t | q, response, critique, y_<t), cap ),   no gradient to w.

What only a critique makes likely is imitated less; the weight of a token that needs no critique is about 1. The lower
probability is that of the sampling distribution, so that without the cap this is the importance-weighted gradient.
It is computed by the trainer, with one more pass over the refinements under the prompt that they were sampled from,
before the first optimizer step: the sampler's own log-probs differ in their last bits with what shares their batch,
and a weights digest must not hang on those.
Where we differ: ICRL trains the critique model too, from the same backbone, rewarded by what its critiques lead to;
our critiques come from wherever critique.kind says, and are not trained. Its advantages are taken for each role apart:
for its solver's two kinds of attempts that is advantage.baseline origin_mean. Not established: the value of the cap,
and whether the ratio is of a token, as here, or of the whole completion.
"""

import torch
from torch import Tensor

from cgrpo_core.learning_params import ShapingParams
from cgrpo_core.loss_rows import ShapedLosses


def reweighted_token_losses(
    logprobs: Tensor, context_logprobs: Tensor | None, advantages: Tensor, active: Tensor, params: ShapingParams
) -> ShapedLosses:
    """Return l_t on active tokens, 0 elsewhere, and w. logprobs, context_logprobs, active [B, T]; advantages [B].

    Raises ValueError without context_logprobs.
    """
    if context_logprobs is None:
        raise ValueError("loss.shaping.kind context_ratio needs the log-probs under the prompt of the refinements")
    pulled = active & (advantages[:, None] != 0)
    log_ratio = torch.where(active, logprobs.detach() - context_logprobs, 0.0)
    weights = log_ratio.exp().clamp(max=params.cap)
    losses = torch.where(pulled, -advantages[:, None] * weights * torch.where(pulled, logprobs, 0.0), 0.0)
    return ShapedLosses(losses=losses, shaped_probs=torch.where(active, weights, 0.0))
