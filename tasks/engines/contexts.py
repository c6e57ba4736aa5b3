"""The rows of a micro-batch once more, after the prompts that they were sampled from or that know their critique.

No gradient flows through those passes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cgrpo_core.logprobs import Pull
from tasks.engines.micro_batch import MicroBatch, Pack, build_micro_batch
from tasks.engines.protocol import UpdateRequest
from tasks.engines.zero import ZeroEngine


def context_of(engine: ZeroEngine, request: UpdateRequest, packs: Sequence[Pack], batch: MicroBatch) -> Tensor | None:
    """Return log-probs [B, T] given each row's context, 0 for rows without one, if the loss asks for them (ICRL).

    Collective. Rows without a context are not computed; a rank that has none with one computes a dummy, because the
    others wait for it.
    """
    if request.loss.kind != "critique_grpo" or request.loss.shaping.kind != "context_ratio":
        return None
    samples = [sample for pack in packs for sample in pack]
    rows = [row for row, sample in enumerate(samples) if sample.context_token_ids]
    contexts = _in_context([(samples[row],) for row in rows], engine.device)
    with torch.no_grad():
        found, _ = engine.logprobs(contexts, request.sampling_temperature, with_entropy=False)
    result = torch.zeros(batch.mask.shape, dtype=found.dtype, device=engine.device)
    if rows:
        result[torch.tensor(rows, device=engine.device), : found.shape[1]] = found
    return result


def forward_with_gradient(
    engine: ZeroEngine, request: UpdateRequest, packs: Sequence[Pack], batch: MicroBatch, pull: Pull | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return log-probs, entropy and, for SDPO, divergences, all [B, T] with gradient (collective)."""
    if request.loss.kind != "sdpo":
        return *engine.logprobs(batch, request.sampling_temperature, with_entropy=True, pull=pull), None
    teaching = _in_context(packs, engine.device)
    return engine.taught_logprobs(batch, teaching, request.sampling_temperature, request.loss.divergence)


def _in_context(packs: Sequence[Pack], device: torch.device) -> MicroBatch:
    """Return the same rows in the same order, each in a sequence of its own after its context."""
    samples = [sample for pack in packs for sample in pack]
    return build_micro_batch([(replace(s, prompt_token_ids=s.context_token_ids),) for s in samples], device)
