"""TrainingSamples as tensors: prompt and completion ids side by side, padded on the right, never re-tokenised."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cgrpo_core.records import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B rows of up to S tokens, T of them completion. A padded or dummy position has mask False."""

    input_ids: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    taken_at: Tensor  # [B, T] int64: position of the hidden state that predicts the target
    targets: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    sampling_logprobs: Tensor  # [B, T] float32
    advantages: Tensor  # [B] float32
    weights: Tensor  # [B] float32
    is_refinement: Tensor  # [B] bool

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what PolicyModule.forward takes."""
        return self.input_ids, self.position_ids, self.taken_at, self.targets


def build_micro_batch(samples: Sequence[TrainingSample], device: torch.device) -> MicroBatch:
    """Return the tensors of `samples`; of none: one row of two tokens that is masked and weighs nothing.

    A rank without rows left must still run forward and backward, because the others wait for it in collectives.
    Raises ValueError for a sample without prompt or completion tokens, or with other than one log-prob a token.
    """
    if not samples:
        return _dummy(device)
    for sample in samples:
        if not sample.prompt_token_ids or not sample.token_ids:
            raise ValueError(f"sample {sample.sample_id} has no prompt tokens or no completion tokens")
        if len(sample.sampling_logprobs) != len(sample.token_ids):
            raise ValueError(f"sample {sample.sample_id} has not one sampling log-prob a token")
    rows, width = len(samples), max(len(s.prompt_token_ids) + len(s.token_ids) for s in samples)
    length = max(len(s.token_ids) for s in samples)
    input_ids = torch.zeros(rows, width, dtype=torch.int64)
    taken_at = torch.zeros(rows, length, dtype=torch.int64)
    targets = torch.zeros(rows, length, dtype=torch.int64)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    sampling = torch.zeros(rows, length)
    for row, sample in enumerate(samples):
        start, count = len(sample.prompt_token_ids), len(sample.token_ids)
        input_ids[row, : start + count] = torch.tensor(sample.prompt_token_ids + sample.token_ids)
        taken_at[row, :count] = torch.arange(start - 1, start - 1 + count)
        targets[row, :count] = torch.tensor(sample.token_ids)
        mask[row, :count] = True
        sampling[row, :count] = torch.tensor(sample.sampling_logprobs, dtype=torch.float32)
    return MicroBatch(
        input_ids=input_ids.to(device),
        position_ids=torch.arange(width).expand(rows, width).to(device),
        taken_at=taken_at.to(device),
        targets=targets.to(device),
        mask=mask.to(device),
        sampling_logprobs=sampling.to(device),
        advantages=torch.tensor([s.advantage for s in samples], dtype=torch.float32, device=device),
        weights=torch.tensor([s.weight for s in samples], dtype=torch.float32, device=device),
        is_refinement=torch.tensor([s.origin == "refinement" for s in samples], device=device),
    )


def _dummy(device: torch.device) -> MicroBatch:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    one = torch.zeros(1, 1, device=device)
    return MicroBatch(
        input_ids=ids,
        position_ids=torch.arange(2, device=device)[None, :],
        taken_at=one.long(),
        targets=one.long(),
        mask=one.bool(),
        sampling_logprobs=one,
        advantages=one[0],
        weights=one[0],
        is_refinement=one[0].bool(),
    )
