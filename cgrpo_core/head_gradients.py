"""Gradients of hidden states and of the head, added up over chunks of tokens."""

import torch
from torch import Tensor

from cgrpo_core.products import TORCH, Products


def parts_of(tokens: int, chunk_tokens: int) -> list[slice]:
    """Return the slices of `chunk_tokens` tokens, the last one shorter, that make up `tokens`."""
    return [slice(start, min(start + chunk_tokens, tokens)) for start in range(0, tokens, chunk_tokens)]


class HeadGradients:
    """The gradients of hidden states and head, added up chunk by chunk; None for one that is not asked for."""

    def __init__(
        self, hidden: Tensor, head_weight: Tensor, wanted: tuple[bool, bool], dtype: torch.dtype, by: Products = TORCH
    ) -> None:
        self._hidden, self._head_weight, self._by = hidden, head_weight, by
        self._of_hidden = torch.empty_like(hidden) if wanted[0] else None
        # Chunks are added up in float32: a bfloat16 sum over hundreds of chunks would lose the small ones.
        self._of_head = torch.zeros_like(head_weight, dtype=dtype) if wanted[1] else None

    def add(self, part: slice, grad_logits: Tensor) -> None:
        """Take in d loss / d logits of one chunk."""
        grad = grad_logits.to(self._hidden.dtype)
        if self._of_hidden is not None:
            self._of_hidden[part] = self._by.input_gradient(grad, self._head_weight)
        if self._of_head is not None:
            self._by.add_weight_gradient(self._of_head, grad, self._hidden[part])

    def results(self) -> tuple[Tensor | None, Tensor | None]:
        """Return both, in the dtype of what they are the gradients of."""
        return self._of_hidden, None if self._of_head is None else self._of_head.to(self._head_weight.dtype)
