"""What is done to the logits of one chunk of tokens, in place where it can be: logits -> log-probs -> their gradient.

On CUDA the passes over a chunk cost more than its matrix products when the vocabulary is large and the model narrow,
so they are compiled into two kernels there: one that reads logits in the model's dtype, one that writes the gradient
in it. On the CPU they run as written, in one buffer and at most two more of chunk * V values.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Taken(NamedTuple):
    """Of each token of a chunk: log-sum-exp of its logits, log-prob of its target, entropy (None: not asked for)."""

    log_sums: Tensor
    logprobs: Tensor
    entropy: Tensor | None


def summarise(logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Taken, Tensor]:
    """Return what is taken from logits [c, V] at targets [c], and what `gradient` needs of them; logits are consumed.

    Widened to float32 (float64 stays) before anything is summed. A logit of -inf has probability 0 and entropy 0.
    """
    if logits.is_cuda:
        log_sums, logprobs, entropy = _compiled(_summary)(logits, targets, temperature, with_entropy)
        return Taken(log_sums, logprobs, entropy if with_entropy else None), logits
    logs = _widened(logits, temperature)
    log_sums = logs.logsumexp(dim=-1)
    logs.sub_(log_sums[:, None])
    logprobs = logs.gather(-1, targets[:, None]).squeeze(-1)
    if not with_entropy:
        return Taken(log_sums, logprobs, None), logs
    logs.clamp_(min=torch.finfo(logs.dtype).min)  # of -inf: 0 * -inf is no number, 0 * anything finite is 0
    return Taken(log_sums, logprobs, 0.0 - torch.einsum("cv,cv->c", logs.exp(), logs)), logs


def logs_again(logits: Tensor, log_sums: Tensor, temperature: float) -> Tensor:
    """Return what `gradient` needs, from logits [c, V] that were computed once more; logits are consumed."""
    return logits if logits.is_cuda else _widened(logits, temperature).sub_(log_sums[:, None])


def gradient(
    logs: Tensor,
    targets: Tensor,
    taken: Taken,
    temperature: float,
    of_logprobs: Tensor | None,
    of_entropy: Tensor | None,
) -> Tensor:
    """Return d loss / d logits [c, V] given d loss / d log-prob and d loss / d entropy [c]; `logs` is consumed.

    d logp/dz_j = [j is target] - p_j;  d H/dz_j = -p_j (log p_j + H);  z = logits / temperature.
    """
    if logs.is_cuda:
        of_logprobs = torch.zeros_like(taken.log_sums) if of_logprobs is None else of_logprobs
        if of_entropy is None or taken.entropy is None:
            return _compiled(_logprob_gradient)(logs, targets, taken.log_sums, temperature, of_logprobs)
        both = (of_logprobs, of_entropy, taken.entropy)
        return _compiled(_full_gradient)(logs, targets, taken.log_sums, temperature, *both)
    if of_entropy is not None and taken.entropy is not None:
        logs.clamp_(min=torch.finfo(logs.dtype).min)
        probs = logs.exp()
        grad = logs.add_(taken.entropy[:, None]).mul_(-of_entropy[:, None])
        grad = grad.mul_(probs) if of_logprobs is None else grad.sub_(of_logprobs[:, None]).mul_(probs)
    elif of_logprobs is not None:
        grad = logs.exp_().mul_(-of_logprobs[:, None])
    else:
        return logs.zero_()
    if of_logprobs is not None:
        grad.scatter_add_(-1, targets[:, None], of_logprobs[:, None])
    return grad if temperature == 1.0 else grad.div_(temperature)


def _widened(logits: Tensor, temperature: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide.div_(temperature)


@cache
def _compiled(function: Any) -> Any:
    # The number of tokens varies, and becomes a symbol with the second one; the vocabulary stays a number, of which the
    # compiler then knows that wide loads may be used.
    return torch.compile(function)


def _summary(logits: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, ...]:
    wide = _widened(logits, 1.0) / temperature
    log_sums = wide.logsumexp(dim=-1)
    logprobs = wide.gather(-1, targets[:, None]).squeeze(-1) - log_sums
    if not with_entropy:
        return log_sums, logprobs, log_sums
    logs = (wide - log_sums[:, None]).clamp(min=torch.finfo(wide.dtype).min)
    return log_sums, logprobs, 0.0 - (logs.exp() * logs).sum(dim=-1)


def _logprob_gradient(
    logits: Tensor, targets: Tensor, log_sums: Tensor, temperature: float, of_logprobs: Tensor
) -> Tensor:
    probs = (_widened(logits, 1.0) / temperature - log_sums[:, None]).exp()
    taken = torch.arange(logits.shape[1], device=logits.device)[None, :] == targets[:, None]
    return ((taken.to(probs.dtype) - probs) * (of_logprobs / temperature)[:, None]).to(logits.dtype)


def _full_gradient(
    logits: Tensor,
    targets: Tensor,
    log_sums: Tensor,
    temperature: float,
    of_logprobs: Tensor,
    of_entropy: Tensor,
    entropy: Tensor,
) -> Tensor:
    logs = (_widened(logits, 1.0) / temperature - log_sums[:, None]).clamp(min=torch.finfo(log_sums.dtype).min)
    probs = logs.exp()
    taken = torch.arange(logits.shape[1], device=logits.device)[None, :] == targets[:, None]
    grad = (taken.to(probs.dtype) - probs) * of_logprobs[:, None]
    grad = grad - probs * (logs + entropy[:, None]) * of_entropy[:, None]
    return (grad / temperature).to(logits.dtype)
