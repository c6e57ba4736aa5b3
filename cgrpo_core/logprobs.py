"""Log-probs of the tokens that were taken, without ever holding [tokens, vocabulary] for more than a chunk.

A full float32 table for 64 rows of 6144 tokens and a vocabulary of 150k is 236 GB; only its log-sum-exp and one
column a token are needed. The backward pass computes each chunk's logits again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def taken_logprobs(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, temperature: float, with_entropy: bool, chunk_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Return log_softmax(hidden @ head_weight.T / temperature) at `targets`, and its entropy if asked for (else None).

    hidden [B, T, H], head_weight [V, H], targets [B, T] (token ids in [0, V), at padding too). Results [B, T] in
    float32, or float64 if hidden is; logits are multiplied in hidden's dtype and widened before the log-sum-exp.
    Both results carry gradients to hidden and head_weight. chunk_tokens bounds what is held: chunk_tokens * V logits.
    Raises ValueError for a temperature or chunk_tokens that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probs of a greedy policy are not defined")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; at least one token must be computed at a time")
    rows, length, width = hidden.shape
    logprobs, entropy = _TakenLogprobs.apply(
        hidden.reshape(rows * length, width),
        head_weight,
        targets.reshape(rows * length),
        temperature,
        with_entropy,
        chunk_tokens,
    )
    return logprobs.view(rows, length), entropy.view(rows, length) if with_entropy else None


def _chunk_logits(hidden: Tensor, head_weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ head_weight.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.div_(temperature)


class _TakenLogprobs(torch.autograd.Function):
    """hidden [N, H], head_weight [V, H], targets [N] -> log-probs [N], entropy [N] (empty when not asked for)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        tokens = hidden.shape[0]
        log_sums = torch.empty(tokens, dtype=dtype, device=hidden.device)
        logprobs = torch.empty_like(log_sums)
        entropy = torch.empty_like(log_sums) if with_entropy else log_sums.new_empty(0)
        for start in range(0, tokens, chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = _chunk_logits(hidden[part], head_weight, temperature)
            log_sums[part] = logits.logsumexp(dim=-1)
            logprobs[part] = logits.gather(-1, targets[part, None]).squeeze(-1) - log_sums[part]
            if with_entropy:
                logs = logits.sub_(log_sums[part, None])
                # A logit of -inf has probability 0 and adds 0 to the entropy, not 0 * -inf.
                entropy[part] = torch.special.entr(logs.exp_()).sum(dim=-1)
        ctx.save_for_backward(hidden, head_weight, targets, log_sums, entropy)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """d logp/dz_j = [j is target] - p_j;  d H/dz_j = -p_j (log p_j + H);  z = logits / temperature."""
        hidden, head_weight, targets, log_sums, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Chunks are added up in float32: a bfloat16 sum over hundreds of chunks would lose the small ones.
        grad_head = torch.zeros_like(head_weight, dtype=log_sums.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], ctx.chunk_tokens):
            part = slice(start, start + ctx.chunk_tokens)
            logs = _chunk_logits(hidden[part], head_weight, ctx.temperature).sub_(log_sums[part, None])
            probs = logs.exp()
            grad = torch.zeros_like(probs)
            if grad_entropy is not None and entropy.numel():
                pull = torch.special.entr(probs) - probs * entropy[part, None]
                grad = pull.mul_(grad_entropy[part, None])
            if grad_logprobs is not None:
                grad -= probs.mul_(grad_logprobs[part, None])
                grad.scatter_add_(-1, targets[part, None], grad_logprobs[part, None])
            grad = grad.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ head_weight
            if grad_head is not None:
                grad_head += grad.T @ hidden[part]
        return grad_hidden, None if grad_head is None else grad_head.to(head_weight.dtype), None, None, None, None
