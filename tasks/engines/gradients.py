"""Gradients of a batch under several losses, at one policy, as one rank takes part in them. No step is taken.

Each loss sees the whole batch as one optimizer step at the policy held, so old_logprobs are the detached log-probs of
the same pass. A loss is a sum over rows with denominators of the whole step, so gradients of origins add up to that of
the batch. (Under scaling `release` the entropy bonus is the exception: it depends on the micro-batches.) Rank 0 keeps
one gradient a loss, in float32 on the CPU, and two while origins are added up.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cgrpo_core.aggregation import denominators
from cgrpo_core.counterfactual import dot, norm, pairwise_cosines
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import policy_loss
from cgrpo_core.params import LossParams
from cgrpo_core.records import Origin, TrainingSample
from tasks.engines.contexts import context_of, forward_with_gradient
from tasks.engines.logprob_gap import LogprobGap
from tasks.engines.micro_batch import build_micro_batch, loss_rows
from tasks.engines.protocol import UpdateRequest
from tasks.engines.update_steps import (
    MiniBatch,
    Split,
    accumulate,
    is_trained,
    micro_batches_of_rank,
    size_of,
)
from tasks.engines.zero import ZeroEngine

ORIGINS: tuple[Origin, ...] = ("response", "refinement", "solution")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossGradient:
    """What one loss makes of the batch.

    origin_norms: of the gradient of the rows of an origin alone. row_losses: each trained row's part of the loss, by
    sample_id. row_pulls: of the rows that were asked for, <g_row, g> / <g, g>: their share of the gradient, along it;
    over all trained rows these add up to 1.
    """

    name: str
    loss: float
    grad_norm: float
    samples_trained: int
    origin_norms: dict[str, float]
    origin_losses: dict[str, float]
    row_losses: dict[str, float]
    row_pulls: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientReport:
    """Every loss in the order asked, the cosines of their gradients, and the digest of the weights before and after."""

    losses: tuple[LossGradient, ...]
    cosines: list[list[float | None]]
    weights_before: str
    weights_after: str


def measure_gradients(
    engine: ZeroEngine, requests: dict[str, UpdateRequest], rows: Sequence[str], split: Split
) -> tuple[list[LossGradient], list[list[float | None]]]:
    """Return what each loss makes of its batch, and the cosines between their gradients (collective).

    rows: sample ids whose gradients are taken alone, each for a forward and backward pass a loss.
    """
    found, gradients = [], []
    for name, request in requests.items():
        engine.set_hyperparameters(request.optimizer)
        measured, gradient = _measure(engine, name, request, rows, split)
        found.append(measured)
        gradients.append(gradient)
    return found, pairwise_cosines(gradients) if split.rank == 0 else []


def most_penalised(requests: dict[str, UpdateRequest]) -> LossParams:
    """Return the loss of the largest KL term: the reference policy is needed if that one needs it."""
    return max((request.loss for request in requests.values()), key=lambda loss: loss.kl_coef)


def _measure(
    engine: ZeroEngine, name: str, request: UpdateRequest, rows: Sequence[str], split: Split
) -> tuple[LossGradient, dict[str, Tensor]]:
    trained = [sample for sample in request.samples if is_trained(sample, request.loss)]
    total: dict[str, Tensor] = {}
    norms, losses = dict[str, float](), dict[str, float]()
    for origin in ORIGINS:
        of_origin = [sample for sample in trained if sample.origin == origin]
        if of_origin:
            losses[origin], gradient = gradient_of(engine, request, of_origin, split)
            norms[origin] = norm(gradient)
            _add(total, gradient)
    pulls: dict[str, float] = {}
    length = dot(total, total)
    for sample in trained:
        if sample.sample_id in rows:
            _, gradient = gradient_of(engine, request, [sample], split)
            pulls[sample.sample_id] = dot(gradient, total) / length if length else 0.0
    report = LossGradient(
        name=name,
        loss=sum(losses.values()),
        grad_norm=norm(total),
        samples_trained=len(trained),
        origin_norms=norms,
        origin_losses=losses,
        row_losses=row_losses(engine, request, trained, split),
        row_pulls=pulls,
    )
    return report, total


def gradient_of(
    engine: ZeroEngine, request: UpdateRequest, samples: Sequence[TrainingSample], split: Split
) -> tuple[float, dict[str, Tensor]]:
    """Return the part of these rows in the loss, and its gradient (collective; the gradient on rank 0 only)."""
    mini_batch = MiniBatch(
        size=size_of(request.samples, request), micro_batches=micro_batches_of_rank(samples, request, split)
    )
    sums = accumulate(engine, request, mini_batch, [None] * len(mini_batch.micro_batches), LogprobGap())
    gradient: dict[str, Tensor] = {}
    for name, tensor in engine.named_gradients():
        if split.rank == 0:
            gradient[name] = tensor.detach().to("cpu", torch.float32, copy=True)
    engine.drop_gradients()
    return sums["loss"], gradient


def row_losses(
    engine: ZeroEngine, request: UpdateRequest, samples: Sequence[TrainingSample], split: Split
) -> dict[str, float]:
    """Return each row's part of the loss, by sample_id, in one pass without gradient (collective)."""
    if not samples:
        return {}
    divide_by = denominators(request.loss, size_of(request.samples, request))
    mine: dict[str, float] = {}
    for packs in micro_batches_of_rank(samples, request, split):
        batch = build_micro_batch(packs, engine.device)
        with torch.no_grad():
            ref = engine.ref_logprobs(batch, request.sampling_temperature)
            context = context_of(engine, request, packs, batch)
            logprobs, entropy, divergences = forward_with_gradient(engine, request, packs, batch, None)
        rows = loss_rows(batch, logprobs, logprobs, entropy, ref, context, divergences)
        in_order = [sample for pack in packs for sample in pack]
        for sample, row in zip(in_order, _one_by_one(rows, len(in_order)), strict=True):
            mine[sample.sample_id] = float(policy_loss(row, request.loss, divide_by).loss)
    shares: list[dict[str, float]] = [{} for _ in range(split.world_size)]
    torch.distributed.all_gather_object(shares, mine)
    everyone = {sample_id: loss for share in shares for sample_id, loss in share.items()}
    return {sample.sample_id: everyone[sample.sample_id] for sample in samples}


def _one_by_one(rows: LossRows, count: int) -> Iterator[LossRows]:
    given = {item.name: getattr(rows, item.name) for item in fields(rows)}
    for place in range(count):
        yield replace(rows, **{name: value[place : place + 1] for name, value in given.items() if value is not None})


def _add(total: dict[str, Tensor], gradient: dict[str, Tensor]) -> None:
    for name, tensor in gradient.items():
        if name in total:
            total[name] += tensor
        else:
            total[name] = tensor.clone()
