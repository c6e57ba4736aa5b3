"""Log-probs of the tokens that were taken, without ever holding [tokens, vocabulary] for more than a chunk.

A full float32 table for 64 rows of 6144 tokens and a vocabulary of 150k is 236 GB; only its log-sum-exp and one
column a token are needed. The backward pass computes each chunk's logits again, unless the forward pass was told what
its gradient will be: then that of the head is added up in place at once, and one of four matrix products is saved.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgrpo_core.head_gradients import HeadGradients, parts_of
from cgrpo_core.logit_chunks import Taken, gradient, logs_again, summarise
from cgrpo_core.products import TORCH, Products

Pull = Callable[[Tensor, slice], Tensor]
"""(log-probs [c], which of the B * T tokens they are of) -> d loss / d log-prob [c], without gradient."""

PULL_TOLERANCE = 1e-5  # relative to the largest: rounding of the same formula, not another formula


def taken_logprobs(
    hidden: Tensor,
    head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    with_entropy: bool,
    chunk_tokens: int,
    pull: Pull | None = None,
    products: Products = TORCH,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return log_softmax(hidden @ head_weight.T / temperature) at `targets`, and its entropy if asked for (else None).

    hidden [B, T, H], head_weight [V, H], targets [B, T] (token ids in [0, V), at padding too). Results [B, T] in
    float32, or float64 if hidden is; logits are multiplied in hidden's dtype and widened before the log-sum-exp.
    Both results carry gradients to hidden and head_weight. chunk_tokens bounds what is held: chunk_tokens * V logits.

    pull: what the gradient of the loss with regard to these log-probs is going to be, where that follows from each
    log-prob alone. It is a promise that is checked: if another gradient arrives, or one for the entropy, the pass
    that `pull` saves is made after all. Raises ValueError for a temperature or chunk_tokens that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probs of a greedy policy are not defined")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; at least one token must be computed at a time")
    if accumulate and not head_weight.is_leaf:
        raise ValueError("only a leaf has a gradient to accumulate into")
    rows, length, width = hidden.shape
    logprobs, entropy = _TakenLogprobs.apply(
        hidden.reshape(rows * length, width),
        head_weight,
        targets.reshape(rows * length),
        temperature,
        with_entropy,
        chunk_tokens,
        pull if torch.is_grad_enabled() else None,
        products,
        accumulate,
    )
    return logprobs.view(rows, length), entropy.view(rows, length) if with_entropy else None


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
        pull: Pull | None,
        products: Products,
        accumulate: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        log_sums = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        logprobs = torch.empty_like(log_sums)
        entropy = torch.empty_like(log_sums) if with_entropy else log_sums.new_empty(0)
        promised = None if pull is None else torch.empty_like(log_sums)
        ready = None if pull is None else HeadGradients(hidden, head_weight, ctx.needs_input_grad[:2], dtype, products)
        for part in parts_of(hidden.shape[0], chunk_tokens):
            taken, logs = summarise(
                products.linear(hidden[part], head_weight), targets[part], temperature, with_entropy
            )
            log_sums[part], logprobs[part] = taken.log_sums, taken.logprobs
            if taken.entropy is not None:
                entropy[part] = taken.entropy
            if pull is not None and promised is not None and ready is not None:
                promised[part] = pull(taken.logprobs, part)
                ready.add(part, gradient(logs, targets[part], taken, temperature, promised[part], None))
        ctx.save_for_backward(hidden, head_weight, targets, log_sums, entropy)
        ctx.temperature, ctx.chunk_tokens, ctx.promised, ctx.ready = temperature, chunk_tokens, promised, ready
        ctx.products, ctx.accumulate = products, accumulate
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return what the forward pass has ready if its promise was kept, else the gradients over all chunks."""
        hidden, head_weight, targets, log_sums, entropy = ctx.saved_tensors
        if ctx.ready is not None and of_entropy is None and _kept(ctx.promised, of_logprobs):
            return _handed_over(ctx, ctx.ready)
        ctx.ready = None
        gradients = HeadGradients(hidden, head_weight, ctx.needs_input_grad[:2], log_sums.dtype, ctx.products)
        for part in parts_of(hidden.shape[0], ctx.chunk_tokens):
            taken = Taken(log_sums[part], log_sums[part], entropy[part] if entropy.numel() else None)
            logs = logs_again(ctx.products.linear(hidden[part], head_weight), taken.log_sums, ctx.temperature)
            pulls = (None if pull is None else pull[part] for pull in (of_logprobs, of_entropy))
            gradients.add(part, gradient(logs, targets[part], taken, ctx.temperature, *pulls))
        return _handed_over(ctx, gradients)


def _handed_over(ctx: Any, gradients: HeadGradients) -> tuple[Tensor | None, ...]:
    """Return what the backward pass returns; the head's gradient is not in it where it was accumulated."""
    ctx.ready = None
    of_hidden, of_head = gradients.results()
    if ctx.accumulate and of_head is not None:
        head_weight = ctx.saved_tensors[1]
        head_weight.grad = of_head if head_weight.grad is None else head_weight.grad.add_(of_head)
        of_head = None
    return of_hidden, of_head, None, None, None, None, None, None, None


def _kept(promised: Tensor, arrived: Tensor | None) -> bool:
    if arrived is None:
        return False
    return bool((promised - arrived).abs().max() <= PULL_TOLERANCE * arrived.abs().max())
