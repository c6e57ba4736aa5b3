"""TrainingSamples as tensors: the sampled token ids, never re-tokenised, padded on the right.

Rows of a group share their prompt. Packed, a prompt stands once, its completions side by side behind it, each seeing
the prompt and itself only, at the positions it would have alone: the same log-probs for about half the computation
where prompts are as long as completions. The packs of a micro-batch then stand in one sequence, with little padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.loss_rows import LossRows
from cgrpo_core.products import ROWS
from cgrpo_core.records import TrainingSample
from tasks.engines.shared_prompts import SharedPrompts

Pack = tuple[TrainingSample, ...]  # rows with one prompt, computed in one sequence
Inputs = tuple[Tensor, Tensor, SharedPrompts | None, Tensor, Tensor]  # of PolicyModule.forward


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """N sequences of up to S tokens that hold B rows of up to T completion tokens. Padding has mask False."""

    input_ids: Tensor  # [N, S] int64
    position_ids: Tensor  # [N, S] int64
    shared_prompts: SharedPrompts | None  # of packs, which all stand in one sequence; None: plainly causal
    taken_at: Tensor  # [B, T] int64: place in [N * S] of the hidden state that predicts the target
    targets: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    sampling_logprobs: Tensor  # [B, T] float32
    advantages: Tensor  # [B] float32
    weights: Tensor  # [B] float32
    off_policy: Tensor  # [B] bool: refinements and solutions

    def inputs(self) -> Inputs:
        """Return what PolicyModule.forward takes."""
        return self.input_ids, self.position_ids, self.shared_prompts, self.taken_at, self.targets


def pack_by_prompt(samples: Sequence[TrainingSample], packed_tokens: int) -> list[Pack]:
    """Return the samples in packs of equal prompts, none above `packed_tokens` tokens unless it is a single row.

    Order is of first appearance. packed_tokens 0 puts every row alone.
    """
    packs: list[list[TrainingSample]] = []
    open_packs: dict[tuple[int, ...], list[TrainingSample]] = {}
    for sample in samples:
        pack = open_packs.get(sample.prompt_token_ids)
        if pack is None or pack_length((*pack, sample)) > packed_tokens:
            pack = open_packs[sample.prompt_token_ids] = []
            packs.append(pack)
        pack.append(sample)
    return [tuple(pack) for pack in packs]


def pack_length(pack: Sequence[TrainingSample]) -> int:
    """Return the tokens of a pack: its prompt once, and every completion."""
    return len(pack[0].prompt_token_ids) + sum(len(sample.token_ids) for sample in pack)


def computed_tokens(packs: Sequence[Pack]) -> tuple[int, int]:
    """Return how many positions a micro-batch of these packs has, and how many of them are padding."""
    lengths = [pack_length(pack) for pack in packs]
    used = sum(lengths)
    if _in_one_sequence(packs):  # filled up, so that kernels are compiled for few lengths (products.py)
        return used + -used % ROWS, -used % ROWS
    positions = len(packs) * max(lengths, default=0)
    return positions, positions - used


def _in_one_sequence(packs: Sequence[Pack]) -> bool:
    return any(len(pack) > 1 for pack in packs)


def _shared_prompts(packs: Sequence[Pack]) -> SharedPrompts:
    """Return how packs stand in one sequence; the padding behind them is a pack of its own."""
    lengths = [[len(pack[0].prompt_token_ids), *(len(sample.token_ids) for sample in pack)] for pack in packs]
    _, padding = computed_tokens(packs)
    return SharedPrompts([*lengths, [padding]] if padding else lengths)


def build_micro_batch(packs: Sequence[Pack], device: torch.device) -> MicroBatch:
    """Return the tensors of `packs`; of none: one row of two tokens that is masked and weighs nothing.

    A rank without rows left must still run forward and backward, because the others wait for it in collectives.
    Raises ValueError for a sample without prompt or completion tokens, or with other than one log-prob a token that was
    sampled.
    """
    real = bool(packs)
    packs = packs or [(_dummy(),)]
    samples = [sample for pack in packs for sample in pack]
    for sample in samples:
        _validate(sample)
    length = max(len(s.token_ids) for s in samples)
    shared = _in_one_sequence(packs)
    input_ids, position_ids, taken_at = _sequences(packs, length, in_one=shared)
    targets = _padded([s.token_ids for s in samples], length, torch.int64)
    counts = torch.tensor([len(s.token_ids) for s in samples])
    mask = (torch.arange(length)[None, :] < counts[:, None]) & real
    return MicroBatch(
        input_ids=input_ids.to(device),
        position_ids=position_ids.to(device),
        shared_prompts=_shared_prompts(packs) if shared else None,
        taken_at=taken_at.to(device),
        targets=targets.to(device),
        mask=mask.to(device),
        sampling_logprobs=_padded([s.sampling_logprobs for s in samples], length, torch.float32).to(device),
        advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32, device=device),
        weights=torch.tensor([s.weight for s in samples], dtype=torch.float32, device=device),
        off_policy=torch.tensor([s.origin != "response" for s in samples], device=device),
    )


def loss_rows(
    batch: MicroBatch,
    logprobs: Tensor,
    old: Tensor,
    entropy: Tensor | None,
    ref: Tensor | None,
    context: Tensor | None,
    divergences: Tensor | None,
) -> LossRows:
    """Return what the loss sees of a micro-batch; tensors [B, T]."""
    return LossRows(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=batch.advantages,
        weights=batch.weights,
        off_policy=batch.off_policy,
        mask=batch.mask,
        entropy=entropy,
        sampling_logprobs=batch.sampling_logprobs,
        ref_logprobs=ref,
        context_logprobs=context,
        divergences=divergences,
    )


def _sequences(packs: Sequence[Pack], length: int, *, in_one: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return input_ids, position_ids [N, S] and taken_at [B, length]; N is 1 for packs `in_one`, else one a pack."""
    rows, (positions, _) = 1 if in_one else len(packs), computed_tokens(packs)
    width = positions // rows
    input_ids = torch.zeros(positions, dtype=torch.int64)
    position_ids = torch.zeros_like(input_ids)
    taken_at, begin = [], 0
    for place, pack in enumerate(packs):
        prompt = pack[0].prompt_token_ids
        begin = begin if in_one else place * width
        end = begin + len(prompt)
        last = end - 1
        input_ids[begin:end] = torch.tensor(prompt)
        position_ids[begin:end] = torch.arange(len(prompt))
        for sample in pack:
            start, end = end, end + len(sample.token_ids)
            input_ids[start:end] = torch.tensor(sample.token_ids)
            position_ids[start:end] = torch.arange(len(prompt), len(prompt) + end - start)
            places = torch.zeros(length, dtype=torch.int64)
            places[: end - start] = torch.arange(start - 1, end - 1)
            places[0] = last  # the first token of every completion follows the prompt
            taken_at.append(places)
        begin = end
    return input_ids.view(rows, width), position_ids.view(rows, width), torch.stack(taken_at)


def _padded(rows: Sequence[Sequence[float]], length: int, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(rows), length, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return out


def _validate(sample: TrainingSample) -> None:
    if not sample.prompt_token_ids or not sample.token_ids:
        raise ValueError(f"sample {sample.sample_id} has no prompt tokens or no completion tokens")
    sampled = len(sample.token_ids) if sample.origin in ("response", "refinement") else 0
    if len(sample.sampling_logprobs) != sampled:
        raise ValueError(f"sample {sample.sample_id} has not one sampling log-prob for each token that was sampled")


def _dummy() -> TrainingSample:
    return TrainingSample(
        sample_id="dummy",
        group_id="dummy",
        origin="refinement",
        prompt_token_ids=(0,),
        token_ids=(0,),
        sampling_logprobs=(0.0,),
        reward=0.0,
        advantage=0.0,
        weight=0.0,
    )
