"""The policy as one module from token ids to log-probs, so that every weight is used inside a forward of its own.

ZeRO stage 3 gathers a module's weights in hooks around its forward; calling the body and the head of a Hugging Face
model by hand would find them sharded. The head is applied to completion positions only.
"""

from typing import Any

import torch
from torch import Tensor

from cgrpo_core.divergences import Divergence, token_divergences
from cgrpo_core.errors import UserError
from cgrpo_core.logprobs import Pull, taken_logprobs
from cgrpo_core.products import TORCH, Products, products_by
from cgrpo_core.records import TrainingSample
from tasks.engines.linear_layers import use_products
from tasks.engines.micro_batch import Inputs, build_micro_batch
from tasks.engines.shared_prompts import NO_MASK, SharedPrompts, use_shared_prompts

TOLERANCE = 0.05  # log-probs; far above rounding in bfloat16, far below what a scaled or capped logit does


class PolicyModule(torch.nn.Module):
    """A Hugging Face causal language model whose forward returns log-probs of given tokens."""

    def __init__(self, causal_lm: Any, chunk_tokens: int, products: Products = TORCH) -> None:
        super().__init__()
        use_shared_prompts(causal_lm)
        self.causal_lm = causal_lm
        self.chunk_tokens = chunk_tokens
        self.products = products
        self.accumulate_head = False  # whoever reads the gradients says whether .grad is where it reads them
        if products is not TORCH:
            use_products(causal_lm, products)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        shared_prompts: SharedPrompts | None,
        taken_at: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
        pull: Pull | None = None,
        teaching: Inputs | None = None,
        divergence: Divergence = "jsd",
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probs, entropy (or None) and divergence (or None) of `targets` given what comes before: [B, T].

        input_ids, position_ids [N, S], padded on the right; taken_at [B, T]: the place in [N * S] whose hidden state
        predicts each target. shared_prompts: how packs stand in the one sequence that they make. Other rows need no
        attention mask: under causal attention nothing on the left sees padding on the right.
        teaching: the same targets at the same places [B, T] after other prompts; the divergence is that of each token's
        whole distribution from the one there, through which no gradient flows.
        """
        taken = self._hidden(input_ids, position_ids, shared_prompts, taken_at)
        with torch.no_grad():
            taught = None if teaching is None else self._hidden(*teaching[:4])
        head = self.causal_lm.get_output_embeddings().weight  # after the body: ZeRO stage 3 has gathered it by then
        logprobs, entropy = taken_logprobs(
            taken,
            head,
            targets,
            temperature=temperature,
            with_entropy=with_entropy,
            chunk_tokens=self.chunk_tokens,
            pull=pull,
            products=self.products,
            accumulate=self.accumulate_head and torch.is_grad_enabled(),
        )
        if taught is None:
            return logprobs, entropy, None
        divergences = token_divergences(
            taken, taught, head, kind=divergence, temperature=temperature, chunk_tokens=self.chunk_tokens
        )
        return logprobs, entropy, divergences

    def _hidden(
        self, input_ids: Tensor, position_ids: Tensor, shared_prompts: SharedPrompts | None, taken_at: Tensor
    ) -> Tensor:
        """Return the hidden states [B, T, H] that predict the targets."""
        packed = {} if shared_prompts is None else {"shared_prompts": shared_prompts, "attention_mask": NO_MASK}
        hidden: Tensor = self.causal_lm.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed
        ).last_hidden_state
        return hidden.flatten(0, 1)[taken_at]


def load_policy_module(
    weights_dir: str,
    *,
    dtype: torch.dtype,
    chunk_tokens: int,
    gradient_checkpointing: bool,
    compile_body: bool = False,
    products: str = "torch",
) -> PolicyModule:
    """Return the model in `weights_dir` (Hugging Face format) in `dtype`, in training mode, without dropout.

    Raises UserError for a model whose logits are more than hidden states times a head (a bias, a cap, a scale), or
    whose attention does not know of packs.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    causal_lm = AutoModelForCausalLM.from_pretrained(
        weights_dir, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    module = PolicyModule(causal_lm, chunk_tokens, _products(products))
    _check_logprobs(module)
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    if compile_body:
        causal_lm.base_model.compile()
    return module


def _products(library: str) -> Products:
    try:
        return products_by(library)
    except ValueError as error:
        raise UserError(str(error), "set engines.trainer.options.products: torch") from None


def _check_logprobs(module: PolicyModule) -> None:
    """Compare log-probs of two packed rows with those of the model's own logits of each row alone."""
    rows = tuple(_row(tokens) for tokens in ((5, 6, 7, 8, 9), (10, 4, 3)))
    batch = build_micro_batch([rows], torch.device("cpu"))
    with torch.no_grad():
        got, _, _ = module.eval()(*batch.inputs(), 1.0, False)
        for row, logprobs in zip(rows, got, strict=True):
            start, ids = len(row.prompt_token_ids), torch.tensor([row.prompt_token_ids + row.token_ids])
            logits = module.causal_lm(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
            expected = logits.log_softmax(-1).gather(-1, ids[0, start:, None]).squeeze(-1)
            if not torch.allclose(expected, logprobs[: len(row.token_ids)].float(), atol=TOLERANCE):
                raise UserError(
                    f"the log-probs of a {type(module.causal_lm).__name__} cannot be computed from packed rows, or its "
                    "logits are not its hidden states times its head",
                    "train a model without logit caps, scales, biases or special masks (Llama, Qwen and their like)",
                )


def _row(token_ids: tuple[int, ...]) -> TrainingSample:
    return TrainingSample(
        sample_id="check",
        group_id="check",
        origin="response",
        prompt_token_ids=(1, 2, 3, 4),
        token_ids=token_ids,
        sampling_logprobs=(0.0,) * len(token_ids),
        reward=0.0,
        advantage=0.0,
        weight=1.0,
    )
