"""SDPO (arXiv 2601.20802): the policy, having read the critique, teaches itself on its own responses, token by token.

l_t = D( p(. | q, y_<t), q'(. | q, response, critique, y_<t) ),   q' the same weights, without gradient

No refinement is sampled and no advantage is taken: each token of a response is moved towards what the policy would
have said there, had it known the critique. D is the Jensen-Shannon divergence, as in the authors' code, or a KL
(divergences.py), over the whole vocabulary.
Where we differ from the authors' code, as far as it could be established: it takes the 100 likeliest tokens and one
tail in the place of the vocabulary; its teacher is a moving average of the weights (rate 0.05), ours the policy of
this very step, which is the same as long as an iteration takes one step; it shows the teacher a correct response of
the same group too, where there is one, ours only response and critique; it clips an importance ratio at 2, ours is
on-policy but for later steps of an iteration. Its mixture with GRPO's advantage is not built.
"""

import torch
from torch import Tensor


def distilled_losses(divergences: Tensor | None, valid: Tensor) -> Tensor:
    """Return l_t where valid, 0 elsewhere. divergences, valid [B, T]. Raises ValueError without divergences."""
    if divergences is None:
        raise ValueError("loss.kind sdpo needs the divergence of each token from what the critique would have said")
    return torch.where(valid, divergences, 0.0)
