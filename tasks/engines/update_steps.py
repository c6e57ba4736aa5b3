"""The optimizer steps of one update, as one rank takes them: mini-batches of whole groups, one step each.

old_logprobs are from before the first step (arXiv 2506.03106, section 4). With one mini-batch they are the detached
log-probs of the same forward pass, for there is no step in between; with several they are the trainer's, which takes a
pass of its own, or the sampler's (cgrpo_core/old_logprobs.py).
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
from cgrpo_core.old_logprobs import first_source, settle_source
from cgrpo_core.params import LossParams
from cgrpo_core.records import OldLogprobs, TrainingSample
from tasks.engines.contexts import context_of, forward_with_gradient
from tasks.engines.logprob_gap import LogprobGap, sum_over_ranks
from tasks.engines.micro_batch import (
    MicroBatch,
    Pack,
    build_micro_batch,
    computed_tokens,
    loss_rows,
    pack_by_prompt,
    pack_length,
)
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
class UpdateSums:
    """What the steps of one update add up to, over all ranks."""

    gap: LogprobGap = field(default_factory=LogprobGap)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUM_NAMES, 0.0))
    grad_norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    non_finite_steps: int = 0
    old_logprobs: OldLogprobs = "none"
    positions: float = 0.0
    padding: float = 0.0

    @property
    def padding_share(self) -> float:
        """Return the share of the computed positions that is padding."""
        return self.padding / self.positions if self.positions else 0.0


def is_trained(sample: TrainingSample, loss: LossParams) -> bool:
    """Return whether a row can contribute a gradient: an advantage of 0 only matters to an entropy or KL term.

    Every row can be imitated (sft); only one with a context can be distilled into (sdpo).
    """
    if loss.kind == "sft":
        return True
    if loss.kind == "sdpo":
        return bool(sample.context_token_ids)
    penalised = loss.kl_coef != 0.0 and sample.origin == "response"
    if loss.trained_rows == "all":
        return True
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
    result.positions, result.padding = _positions(engine, mini_batches)
    before: list[list[Before | None]] = [[None] * len(batch.micro_batches) for batch in mini_batches]
    gap = LogprobGap()
    if not any(s.origin == "response" and is_trained(s, request.loss) for s in request.samples):
        _measure(engine, request, _probe(request, split), gap)
    source = first_source(request.loss, len(mini_batches))
    if source == "trainer" or not mini_batches:
        before = [_measure(engine, request, batch.micro_batches, gap) for batch in mini_batches]
        result.gap = gap.over_ranks(engine.device)
        result.gap.check(request.logprob_gap_max)
    for number, batch in enumerate(mini_batches):
        sums = accumulate(engine, request, batch, before[number], gap)
        if number == 0 and source != "trainer":  # the gap was measured in this pass, before any step
            result.gap = _checked_or_dropped(engine, gap, request.logprob_gap_max)
            source = settle_source(request.loss, source, result.gap.largest if result.gap.tokens else None)
            before[1:] = [_before(engine, request, one.micro_batches, source) for one in mini_batches[1:]]
        _finish_step(result, sums, engine.step())
    result.old_logprobs = source
    return result


def _positions(engine: ZeroEngine, mini_batches: Sequence[MiniBatch]) -> list[float]:
    """Return the positions that one pass over the mini-batches computes on all ranks, and how many are padding."""
    counted = [computed_tokens(packs) for batch in mini_batches for packs in batch.micro_batches]
    return sum_over_ranks([float(sum(column)) for column in zip(*counted, (0, 0), strict=True)], engine.device)


def _before(
    engine: ZeroEngine, request: UpdateRequest, micro_batches: Sequence[Sequence[Pack]], source: OldLogprobs
) -> list[Before | None]:
    """Return what the later steps compare with, called before the first step is taken."""
    if source == "trainer_for_gap":
        return _measure(engine, request, micro_batches, LogprobGap())
    measured: list[Before | None] = []
    # The sampler's log-probs of a refinement are given its critique; a solution has none. All ranks must decide alike.
    ratio_of_others = request.loss.kind == "grpo" and any(s.origin != "response" for s in request.samples)
    for packs in micro_batches:
        batch = build_micro_batch(packs, engine.device)
        old = batch.sampling_logprobs
        if source == "sampler" and ratio_of_others:
            with torch.no_grad():
                own, _ = engine.logprobs(batch, request.sampling_temperature, with_entropy=False)
            old = torch.where(batch.off_policy[:, None], own, old)
        measured.append(Before(old=old, context=context_of(engine, request, packs, batch)))
    return measured


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
    return dict(zip(sums, sum_over_ranks(list(sums.values()), engine.device), strict=True))


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
