"""Attention over packs: a prompt once, completions side by side behind it, each seeing the prompt and itself only.

A mask over the whole sequence would pay for its square, and for the queries of a completion against all others. Here
each completion attends to its prompt's keys and its own; nothing else is computed, so the length of a pack is free.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATION = "cgrpo_shared_prompts"
NO_MASK = torch.zeros(1, 1, 1, 1)  # four dimensions keep transformers from building a mask; nobody reads it


class SharedPrompts:
    """What stands where in one sequence of packs: of each pack its prompt's length, then those of its completions."""

    def __init__(self, packs: Sequence[Sequence[int]]) -> None:
        self.lengths = [length for pack in packs for length in pack]
        self.packs = [len(pack) for pack in packs]
        self._masks: dict[tuple[int, int], Tensor] = {}  # one for all layers

    def after_prompt(self, own: int, prompt: int, like: Tensor) -> Tensor:
        """Return what is added to scores [own, prompt + own]: 0 for the prompt and what is not later, else -inf."""
        if (own, prompt) not in self._masks:
            scores = torch.full((own, prompt + own), -torch.inf, dtype=like.dtype, device=like.device)
            self._masks[own, prompt] = scores.triu(prompt + 1)
        return self._masks[own, prompt]


def use_shared_prompts(causal_lm: Any) -> None:
    """Let a Hugging Face model attend as told by the keyword `shared_prompts`; without it, by "sdpa" as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    causal_lm.set_attn_implementation(IMPLEMENTATION)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    shared_prompts: SharedPrompts | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [N, S, heads, D] of query [N, heads, S, D], key and value [N, kv_heads, S, D].

    With shared_prompts N is 1. Raises ValueError for a layer with a sliding window, which packs do not have.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if shared_prompts is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return out
    if options.get("sliding_window") is not None:
        raise ValueError("this model's attention has a sliding window: set packed_tokens to 0")
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not query.is_cpu:  # with a mask, CUDA's fused kernels want a key a head
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1
    # Split, not sliced: its backward pass is one concatenation, where each slice would fill a whole tensor with zeros.
    queries, keys, values = (tensor.split(shared_prompts.lengths, dim=2) for tensor in (query, key, value))
    found, at = [], 0
    for pieces in shared_prompts.packs:
        for piece in range(at, at + pieces):
            own, k, v, mask = queries[piece], keys[piece], values[piece], None
            if piece > at:
                k, v = torch.cat((keys[at], k), dim=2), torch.cat((values[at], v), dim=2)
                mask = shared_prompts.after_prompt(own.shape[2], keys[at].shape[2], own)
            part = torch.nn.functional.scaled_dot_product_attention(
                own, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
            )
            found.append(part.transpose(1, 2))
        at += pieces
    return torch.cat(found, dim=1), None
