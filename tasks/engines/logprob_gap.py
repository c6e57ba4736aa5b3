"""How far the log-probs of sampler and trainer are apart, over the rows of all ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.engines.micro_batch import MicroBatch
from tasks.engines.protocol import LogprobGapExceeded


@dataclass(slots=True, kw_only=True)
class LogprobGap:
    """Sums over response tokens of sampling log-prob minus trainer log-prob, before the first optimizer step."""

    signed: float = 0.0
    absolute: float = 0.0
    tokens: float = 0.0
    not_finite: float = 0.0
    largest: float = 0.0

    def add(self, batch: MicroBatch, logprobs: Tensor) -> None:
        """Count the response tokens of a micro-batch, logprobs [B, T]. Others were not sampled
        from this prompt, and are not compared."""
        of_responses = batch.mask & ~batch.off_policy[:, None]
        gap = (batch.sampling_logprobs - logprobs.detach().float())[of_responses].double()
        if gap.numel():
            self.signed += float(gap.sum())
            self.absolute += float(gap.abs().sum())
            self.tokens += gap.numel()
            self.not_finite += int((~gap.isfinite()).sum())
            self.largest = max(self.largest, float(gap.abs().nan_to_num(posinf=0.0).max()))

    def over_ranks(self, device: torch.device) -> "LogprobGap":
        """Return the gap over the rows of all ranks (collective)."""
        signed, absolute, tokens, not_finite = sum_over_ranks(
            [self.signed, self.absolute, self.tokens, self.not_finite], device
        )
        largest = torch.tensor([self.largest], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        return LogprobGap(
            signed=signed, absolute=absolute, tokens=tokens, not_finite=not_finite, largest=float(largest)
        )

    def check(self, limit: float | None) -> None:
        """Raise LogprobGapExceeded above the limit, and whatever the limit for a log-prob that is not a number."""
        if self.not_finite:
            raise LogprobGapExceeded(
                f"{self.not_finite:.0f} of {self.tokens:.0f} response tokens have no finite log-prob"
            )
        if limit is not None and self.largest > limit:
            raise LogprobGapExceeded(
                f"sampler and trainer log-probs of {self.tokens:.0f} response tokens differ by up to "
                f"{self.largest:.3e} (mean {self.absolute / self.tokens:.3e}); limits.logprob_gap_max is {limit:g}"
            )


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Return each value summed up over the ranks (collective)."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]
