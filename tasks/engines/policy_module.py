"""The policy as one module from token ids to log-probs, so that every weight is used inside a forward of its own.

ZeRO stage 3 gathers a module's weights in hooks around its forward; calling the body and the head of a Hugging Face
model by hand would find them sharded. The head is applied to completion positions only.
"""

from typing import Any

import torch
from torch import Tensor

from cgrpo_core.errors import UserError
from cgrpo_core.logprobs import taken_logprobs

HEAD_TOLERANCE = 0.05  # log-probs; far above rounding in bfloat16, far below what a scaled or capped logit does


class PolicyModule(torch.nn.Module):
    """A Hugging Face causal language model whose forward returns log-probs of given tokens."""

    def __init__(self, causal_lm: Any, chunk_tokens: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.chunk_tokens = chunk_tokens

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        taken_at: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probs and entropy (or None), both [B, T], of `targets` [B, T] given what comes before them.

        input_ids, position_ids [B, S], padded on the right; taken_at [B, T]: the position whose hidden state predicts
        each target. No attention mask is passed: under a causal mask nothing on the left sees padding on the right,
        and the pure causal kernel is the fastest.
        """
        body = self.causal_lm.base_model
        hidden = body(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        taken = hidden.gather(1, taken_at[..., None].expand(-1, -1, hidden.shape[-1]))
        logprobs, entropy = taken_logprobs(
            taken,
            self.causal_lm.get_output_embeddings().weight,
            targets,
            temperature=temperature,
            with_entropy=with_entropy,
            chunk_tokens=self.chunk_tokens,
        )
        return logprobs, entropy


def load_policy_module(
    weights_dir: str, *, dtype: torch.dtype, chunk_tokens: int, gradient_checkpointing: bool
) -> PolicyModule:
    """Return the model in `weights_dir` (Hugging Face format) in `dtype`, in training mode, without dropout.

    Raises UserError for a model whose logits are more than hidden states times a head (a bias, a cap, a scale).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    causal_lm = AutoModelForCausalLM.from_pretrained(
        weights_dir, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    module = PolicyModule(causal_lm, chunk_tokens)
    _check_head(module)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module


def _check_head(module: PolicyModule) -> None:
    """Compare the module's log-probs of a few tokens with those of the model's own logits."""
    ids = torch.arange(1, 9)[None, :]
    positions = torch.arange(8)[None, :]
    with torch.no_grad():
        logits = module.causal_lm.eval()(input_ids=ids, use_cache=False).logits.float()
        expected = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        got, _ = module(ids, positions, positions[:, :-1], ids[:, 1:], 1.0, False)
    if not torch.allclose(expected, got.float(), atol=HEAD_TOLERANCE):
        raise UserError(
            f"the logits of a {type(module.causal_lm).__name__} are not its hidden states times its head",
            "train a model without logit caps, scales or biases (Llama, Qwen, SmolLM and their like)",
        )
