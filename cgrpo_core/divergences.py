"""How far two next-token distributions are apart, without ever holding [tokens, vocabulary] for more than a chunk.

With p the distribution that is taught and q the one that teaches (given, without gradient), for each token:

    reverse_kl  D = sum_v p log(p / q)
    forward_kl  D = sum_v q log(q / p)
    jsd         D = 1/2 sum_v p log(p / m) + 1/2 sum_v q log(q / m),   m = (p + q) / 2;  at most log 2

Both come from hidden states and one head. The head gets its gradient through p alone.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgrpo_core.head_gradients import HeadGradients, parts_of

Divergence = Literal["jsd", "reverse_kl", "forward_kl"]


def token_divergences(
    hidden: Tensor,
    teaching_hidden: Tensor,
    head_weight: Tensor,
    *,
    kind: Divergence,
    temperature: float,
    chunk_tokens: int,
) -> Tensor:
    """Return D of each token, [B, T], in float32, or float64 if hidden is.

    hidden, teaching_hidden [B, T, H]: hidden states that predict the same token, without and with the teaching context;
    head_weight [V, H]. Gradients reach hidden and head_weight, as if q were a constant. chunk_tokens * V log-probs of
    each are held at once. Raises ValueError for different shapes, and for a temperature or chunk_tokens that is not
    positive.
    """
    if hidden.shape != teaching_hidden.shape:
        raise ValueError(f"hidden states {tuple(hidden.shape)} cannot be taught by {tuple(teaching_hidden.shape)}")
    if not temperature > 0 or chunk_tokens < 1:
        raise ValueError(f"temperature {temperature} and chunk_tokens {chunk_tokens} must be positive")
    rows, length, width = hidden.shape
    flat = (hidden.reshape(rows * length, width), teaching_hidden.detach().reshape(rows * length, width))
    found: Tensor = _Divergences.apply(*flat, head_weight, kind, temperature, chunk_tokens)
    return found.view(rows, length)


def _parts(log_p: Tensor, log_q: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Return D [N] and its derivative to the logits of p [N, V], from log-probs [N, V].

    A token of probability 0 adds 0, not 0 * -inf. For reverse_kl and jsd the derivative is p (g - sum p g) with
    g = log(p / q), and half of it with g = log(p / m).
    """
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return _sum(q, log_q - log_p), p - q
    if kind == "reverse_kl":
        gap = log_p - log_q
        divergence = _sum(p, gap)
        return divergence, torch.where(p > 0, p * (gap - divergence[:, None]), 0.0)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.as_tensor(2.0, dtype=log_p.dtype))
    gap = log_p - log_m
    of_p = _sum(p, gap)
    pull = torch.where(p > 0, 0.5 * p * (gap - of_p[:, None]), 0.0)
    return 0.5 * (of_p + _sum(q, log_q - log_m)), pull


def _sum(probs: Tensor, logs: Tensor) -> Tensor:
    return torch.where(probs > 0, probs * logs, 0.0).sum(dim=-1)


class _Divergences(torch.autograd.Function):
    """hidden [N, H], teaching hidden [N, H], head_weight [V, H] -> D [N]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        teaching: Tensor,
        head_weight: Tensor,
        kind: Divergence,
        temperature: float,
        chunk_tokens: int,
    ) -> Tensor:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        divergences = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        for part in parts_of(hidden.shape[0], chunk_tokens):
            log_p, log_q = (_logs(states[part], head_weight, temperature) for states in (hidden, teaching))
            divergences[part] = _parts(log_p, log_q, kind)[0]
        ctx.save_for_backward(hidden, teaching, head_weight)
        ctx.settings = kind, temperature, chunk_tokens
        return divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Compute each chunk's log-probs again, as the forward pass did."""
        hidden, teaching, head_weight = ctx.saved_tensors
        kind, temperature, chunk_tokens = ctx.settings
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
        gradients = HeadGradients(hidden, head_weight, wanted, upstream.dtype)
        for part in parts_of(hidden.shape[0], chunk_tokens):
            log_p, log_q = (_logs(states[part], head_weight, temperature) for states in (hidden, teaching))
            gradients.add(part, _parts(log_p, log_q, kind)[1].mul_(upstream[part, None]).div_(temperature))
        of_hidden, of_head = gradients.results()
        return of_hidden, None, of_head, None, None, None


def _logs(states: Tensor, head_weight: Tensor, temperature: float) -> Tensor:
    logits = states @ head_weight.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.div_(temperature).log_softmax(dim=-1)
