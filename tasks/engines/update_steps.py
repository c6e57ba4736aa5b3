"""The optimizer steps of one update, as one rank takes them: mini-batches of whole groups, one step each.

old_logprobs are the trainer's own, from before the first step (arXiv 2506.03106, section 4). With one mini-batch they
are the detached log-probs of the same forward pass, for there is no step in between; with several they take a pass of
their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cgrpo_core.aggregation import Denominators, StepSize, denominators, step_size
from cgrpo_core.batching import assign_to_ranks, split_micro_batches, split_mini_batches
from cgrpo_core.logprobs import Pull
from cgrpo_core.loss_pull import loss_pull
from cgrpo_core.losses import SUM_NAMES, policy_loss
from cgrpo_core.params import LossParams
from cgrpo_core.records import TrainingSample
from tasks.engines.contexts import context_of, forward_with_gradient
from tasks.engines.micro_batch import MicroBatch, Pack, build_micro_batch, loss_rows, pack_by_prompt, pack_length
from tasks.engines.protocol import LogprobGapExceeded, UpdateRequest
from tasks.engines.zero import ZeroEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """This rank's place among the others, and how long packs of rows with one prompt may get (0: no packs)."""

    rank: int
    world_size: int
    packed_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """One optimizer step: this rank's micro-batches (an empty one is a dummy), and the size of the whole step."""

    size: StepSize
    micro_batches: tuple[tuple[Pack, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Log-probs [B, T] of a micro-batch from before the first step: of its rows, and given their contexts (or None)."""

    old: Tensor
    context: Tensor | None


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
        signed, absolute, tokens, not_finite = _sum_over_ranks(
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


@dataclass(slots=True, kw_only=True)
class UpdateSums:
    """What the steps of one update add up to, over all ranks."""

    gap: LogprobGap = field(default_factory=LogprobGap)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUM_NAMES, 0.0))
    grad_norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    non_finite_steps: int = 0


def is_trained(sample: TrainingSample, loss: LossParams) -> bool:
    """Return whether a row can contribute a gradient: an advantage of 0 only matters to an entropy or KL term.

    Every row can be imitated (sft); only one with a context can be distilled into (sdpo).
    """
    if loss.kind == "sft":
        return True
    if loss.kind == "sdpo":
        return bool(sample.context_token_ids)
    penalised = loss.kl_coef != 0.0 and sample.origin == "response"
    return sample.advantage != 0.0 or loss.entropy_coef != 0.0 or penalised


def plan_mini_batches(request: UpdateRequest, split: Split) -> list[MiniBatch]:
    """Return the mini-batches that have a trained row, with the micro-batches of one rank.

    Rows without gradient still count in the size of their mini-batch: the loss is a mean over all groups, or tokens.
    """
    samples = request.samples
    planned = []
    for rows in split_mini_batches([s.group_id for s in samples], request.optimizer.mini_batch_prompts):
        size = size_of([samples[row] for row in rows], request)
        trained = [samples[row] for row in rows if is_trained(samples[row], request.loss)]
        if trained:
            micro_batches = micro_batches_of_rank(trained, request, split)
            planned.append(MiniBatch(size=size, micro_batches=micro_batches))
    return planned


def size_of(rows: Sequence[TrainingSample], request: UpdateRequest) -> StepSize:
    """Return the size of an optimizer step over these rows."""
    return step_size(
        [len(row.token_ids) for row in rows],
        [row.weight for row in rows],
        prompts=len({row.group_id for row in rows}),
        max_response_tokens=request.max_response_tokens,
    )


def micro_batches_of_rank(
    samples: Sequence[TrainingSample], request: UpdateRequest, split: Split
) -> tuple[tuple[Pack, ...], ...]:
    """Return the micro-batches of one rank, as many as every other has; some may be empty."""
    packs = pack_by_prompt(samples, split.packed_tokens)
    lengths = [pack_length(pack) for pack in packs]
    micro_batches = split_micro_batches(lengths, request.optimizer.tokens_per_micro_batch)
    shares = assign_to_ranks(micro_batches, split.world_size)
    return tuple(tuple(packs[index] for index in indices) for indices in shares[split.rank])


def take_steps(engine: ZeroEngine, request: UpdateRequest, split: Split) -> UpdateSums:
    """Take the optimizer steps of one update (collective).

    Raises LogprobGapExceeded, on all ranks and before any step, if sampler and trainer disagree; the gradients are
    dropped then. A step with non-finite gradients changes nothing and is counted.
    """
    mini_batches = plan_mini_batches(request, split)
    engine.set_hyperparameters(request.optimizer)
    result = UpdateSums()
    before: list[list[Before | None]] = [[None] * len(batch.micro_batches) for batch in mini_batches]
    gap = LogprobGap()
    if not any(s.origin == "response" and is_trained(s, request.loss) for s in request.samples):
        _measure(engine, request, _probe(request, split), gap)
    if len(mini_batches) > 1:
        before = [_measure(engine, request, batch.micro_batches, gap) for batch in mini_batches]
    measured_with_gradient = len(mini_batches) == 1
    if not measured_with_gradient:
        result.gap = gap.over_ranks(engine.device)
        result.gap.check(request.logprob_gap_max)
    for batch, measured in zip(mini_batches, before, strict=True):
        sums = accumulate(engine, request, batch, measured, gap)
        if measured_with_gradient:
            result.gap = _checked_or_dropped(engine, gap, request.logprob_gap_max)
        _finish_step(result, sums, engine.step())
    return result


def _probe(request: UpdateRequest, split: Split) -> tuple[tuple[Pack, ...], ...]:
    """Return up to one micro-batch of response rows a rank, to measure the gap on when no response is trained."""
    responses = [s for s in request.samples if s.origin == "response"]
    return micro_batches_of_rank(responses, request, split)[:1] if responses else ()


def _measure(
    engine: ZeroEngine, request: UpdateRequest, micro_batches: Sequence[Sequence[Pack]], gap: LogprobGap
) -> list[Before | None]:
    """Return the log-probs of each micro-batch, without gradient, and count them in `gap`."""
    measured: list[Before | None] = []
    for packs in micro_batches:
        batch = build_micro_batch(packs, engine.device)
        with torch.no_grad():
            logprobs, _ = engine.logprobs(batch, request.sampling_temperature, with_entropy=False)
        gap.add(batch, logprobs)
        measured.append(Before(old=logprobs, context=context_of(engine, request, packs, batch)))
    return measured


def accumulate(
    engine: ZeroEngine,
    request: UpdateRequest,
    mini_batch: MiniBatch,
    before: Sequence[Before | None],
    gap: LogprobGap,
) -> dict[str, float]:
    """Add up the gradients of a mini-batch; return its sums over all ranks. `gap` counts rows not measured before."""
    sums = dict.fromkeys(SUM_NAMES, 0.0)
    divide_by = denominators(request.loss, mini_batch.size)
    final = len(mini_batch.micro_batches) - 1
    for index, (packs, measured) in enumerate(zip(mini_batch.micro_batches, before, strict=True)):
        batch = build_micro_batch(packs, engine.device)
        # Before the forward pass with gradient: backward must follow that one directly.
        context = measured.context if measured else context_of(engine, request, packs, batch)
        ref = engine.ref_logprobs(batch, request.sampling_temperature)
        pull = _pull(batch, measured.old if measured else None, context, ref, request, divide_by, engine.world_size)
        logprobs, entropy, divergences = forward_with_gradient(engine, request, packs, batch, pull)
        if measured is None:
            gap.add(batch, logprobs)
        old = measured.old if measured else logprobs.detach()
        rows = loss_rows(batch, logprobs, old, entropy, ref, context, divergences)
        terms = policy_loss(rows, request.loss, divide_by)
        engine.accumulate(terms.loss, last=index == final)
        for name, value in terms.sums.items():
            sums[name] += value
    return dict(zip(sums, _sum_over_ranks(list(sums.values()), engine.device), strict=True))


def _pull(
    batch: MicroBatch,
    old: Tensor | None,
    context: Tensor | None,
    ref: Tensor | None,
    request: UpdateRequest,
    divide_by: Denominators,
    world_size: int,
) -> Pull | None:
    """Return what the loss below will ask of each log-prob, where that can be known before all of them are."""
    return loss_pull(
        old_logprobs=old,
        advantages=batch.advantages,
        weights=batch.weights,
        off_policy=batch.off_policy,
        mask=batch.mask,
        sampling_logprobs=batch.sampling_logprobs,
        ref_logprobs=ref,
        context_logprobs=context,
        params=request.loss,
        divide_by=divide_by,
        factor=world_size,
    )


def _checked_or_dropped(engine: ZeroEngine, gap: LogprobGap, limit: float | None) -> LogprobGap:
    total = gap.over_ranks(engine.device)
    try:
        total.check(limit)
    except LogprobGapExceeded:
        engine.drop_gradients()
        raise
    return total


def _finish_step(result: UpdateSums, sums: dict[str, float], grad_norm: float | None) -> None:
    if grad_norm is None:
        result.non_finite_steps += 1
        return
    result.grad_norms.append(grad_norm)
    result.losses.append(sums["loss"])
    for name, value in sums.items():
        if not math.isfinite(value):
            raise RuntimeError(f"{name} is {value} although the gradients were finite")
        result.sums[name] += value


def _sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    total = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]
