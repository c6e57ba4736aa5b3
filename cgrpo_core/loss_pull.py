"""What a loss will ask of each log-prob, known as soon as the log-prob is: the promise that logprobs.py makes use of.

Under every ratio rule but that of whole sequences, a token's loss depends on that token's log-prob and on constants of
its row. So its gradient is that of the same loss over rows of one token each, and needs no other token to be there.
"""

import torch
from torch import Tensor

from cgrpo_core.aggregation import Denominators
from cgrpo_core.learning_params import LossParams
from cgrpo_core.logprobs import Pull
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import loss_and_sums


def loss_pull(
    *,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    off_policy: Tensor,
    mask: Tensor,
    sampling_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    context_logprobs: Tensor | None,
    params: LossParams,
    divide_by: Denominators,
    factor: float,
) -> Pull | None:
    """Return the function (log-probs of some of the B * T tokens, which ones) -> factor * d policy_loss / d log-prob.

    Tensors as in LossRows; old_logprobs None: they are the log-probs themselves, detached. None is returned for a loss
    that does not decompose into tokens, or has an entropy term or a divergence, whose gradient is more than the
    log-probs'.
    """
    if params.ratio == "sequence" or params.entropy_coef != 0 or params.kind == "sdpo":
        return None
    lengths = mask.bool().sum(dim=1).clamp(min=1) if params.aggregate == "sequence_mean" else 1
    token_weights = _each_token(weights / lengths, mask)
    row_values = {"advantages": _each_token(advantages, mask), "off_policy": _each_token(off_policy, mask)}
    token_values = {"mask": mask, "sampling_logprobs": sampling_logprobs, "ref_logprobs": ref_logprobs}
    token_values["context_logprobs"] = context_logprobs
    flat = {name: None if value is None else value.reshape(-1, 1) for name, value in token_values.items()}
    old = None if old_logprobs is None else old_logprobs.reshape(-1, 1)

    def pull(logprobs: Tensor, part: slice) -> Tensor:
        with torch.enable_grad():
            new = logprobs.detach()[:, None].requires_grad_()
            rows = LossRows(
                logprobs=new,
                old_logprobs=new.detach() if old is None else old[part],
                weights=token_weights[part],
                **{name: value[part] for name, value in row_values.items()},
                **{name: None if value is None else value[part] for name, value in flat.items()},  # type: ignore[arg-type]
            )
            loss, _ = loss_and_sums(rows, params, divide_by)
            (gradient,) = torch.autograd.grad(loss * factor, new)
        return gradient.squeeze(1)

    return pull


def _each_token(rows: Tensor, mask: Tensor) -> Tensor:
    """Return a value a row [B] as a value a token [B * T]."""
    return rows[:, None].expand_as(mask).reshape(-1)
