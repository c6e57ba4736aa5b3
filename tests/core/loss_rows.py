"""Micro-batches for tests of the loss, and the loss with its gradient to the log-probs."""

import dataclasses

import pytest
import torch
from torch import Tensor

from cgrpo_core.aggregation import Denominators
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import LossTerms, policy_loss
from cgrpo_core.params import LossParams, MismatchParams, ShapingParams

PAPER = LossParams()
NO_CLIP = LossParams(clip_low=None, clip_high=None)
GRPO = LossParams(kind="grpo")


def take(rows: LossRows, indices: list[int]) -> LossRows:
    """Return some of the rows, in this order."""
    given = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return LossRows(**{name: None if value is None else value[indices] for name, value in given.items()})


def random_rows(seed: int, rows: int = 6, length: int = 7) -> LossRows:
    rng = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(rows, length, generator=rng, dtype=torch.float64) - 0.01
    lengths = torch.randint(1, length + 1, (rows,), generator=rng)
    return LossRows(
        logprobs=logprobs,
        old_logprobs=logprobs + 0.4 * torch.randn(rows, length, generator=rng, dtype=torch.float64),
        entropy=torch.rand(rows, length, generator=rng, dtype=torch.float64),
        advantages=torch.randn(rows, generator=rng, dtype=torch.float64),
        weights=torch.rand(rows, generator=rng, dtype=torch.float64) + 0.1,
        off_policy=torch.arange(rows) % 3 == 1,
        mask=torch.arange(length)[None, :] < lengths[:, None],
        context_logprobs=logprobs + torch.randn(rows, length, generator=rng, dtype=torch.float64),
        sampling_logprobs=logprobs + 0.6 * torch.randn(rows, length, generator=rng, dtype=torch.float64),
        ref_logprobs=logprobs + 0.5 * torch.randn(rows, length, generator=rng, dtype=torch.float64),
    )


def terms_and_gradient(rows: LossRows, params: LossParams, denominator: float = 10.0) -> tuple[LossTerms, Tensor]:
    logprobs = rows.logprobs.clone().requires_grad_(True)
    given = dataclasses.replace(rows, logprobs=logprobs)
    terms = policy_loss(given, params, Denominators(losses=denominator, entropy=denominator))
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    return terms, gradient


def hand_rows() -> LossRows:
    """A response with ratios 1.5, 0.5 and padding, A = 2, weight 1/2; a refinement with p = 0.1, 0.4, 0.9, A = -1."""
    ratios = torch.tensor([[1.5, 0.5, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    new = torch.tensor([[0.3, 0.2, 0.7], [0.1, 0.4, 0.9]], dtype=torch.float64).log()
    return LossRows(
        logprobs=new,
        old_logprobs=new - ratios.log(),
        entropy=torch.tensor([[1.0, 2.0, 50.0], [3.0, 4.0, 5.0]], dtype=torch.float64),
        advantages=torch.tensor([2.0, -1.0], dtype=torch.float64),
        weights=torch.tensor([0.5, 1.0], dtype=torch.float64),
        off_policy=torch.tensor([False, True]),
        mask=torch.tensor([[1, 1, 0], [1, 1, 1]]),
    )


VARIANTS = [
    pytest.param(PAPER, id="paper"),
    pytest.param(NO_CLIP, id="no_clip"),
    pytest.param(GRPO, id="grpo"),
    pytest.param(LossParams(clip_high=0.28), id="two_edges"),
    pytest.param(LossParams(shaping=ShapingParams(kind="none")), id="unshaped"),
    pytest.param(LossParams(shaping=ShapingParams(gamma=0.5)), id="gamma_0.5"),
    pytest.param(LossParams(entropy_coef=0.01), id="entropy"),
    pytest.param(LossParams(kind="grpo", aggregate="sequence_mean", entropy_coef=0.01), id="sequence_mean"),
    pytest.param(
        LossParams(aggregate="token_mean", entropy_coef=0.01, entropy_aggregate="token_mean"), id="token_mean"
    ),
    pytest.param(
        LossParams(ratio="sequence", clip_low=0.1, clip_high=0.15, aggregate="sequence_mean"), id="sequence_ratio"
    ),
    pytest.param(LossParams(kind="grpo", ratio="cispo", clip_low=None, clip_high=0.28), id="cispo"),
    pytest.param(LossParams(ratio="cispo", clip_low=0.3, clip_high=0.1, aggregate="token_mean"), id="cispo_two_edges"),
    pytest.param(LossParams(ratio="none", clip_low=None, clip_high=None), id="reinforce"),
    pytest.param(LossParams(mismatch=MismatchParams(kind="truncated", cap=1.5)), id="mismatch"),
    pytest.param(
        LossParams(kind="grpo", ratio="none", clip_low=None, clip_high=None, mismatch=MismatchParams(kind="truncated")),
        id="reinforce_mismatch",
    ),
    pytest.param(LossParams(kind="grpo", kl_coef=0.1, aggregate="token_mean"), id="kl"),
    pytest.param(LossParams(kl_coef=0.1, mismatch=MismatchParams(kind="truncated"), clip_high=0.28), id="kl_mismatch"),
]

SUCCESSORS = [
    pytest.param(LossParams(shaping=ShapingParams(kind="log_p")), id="rltf"),
    pytest.param(LossParams(shaping=ShapingParams(kind="context_ratio", cap=1.2)), id="icrl"),
    pytest.param(LossParams(kind="sft", ratio="none", clip_low=None, clip_high=None, aggregate="token_mean"), id="sft"),
]
