"""Micro-batches for tests of the loss, and the loss with its gradient to the log-probs."""

import dataclasses

import pytest
import torch
from torch import Tensor

from cgrpo_core.losses import LossTerms, policy_loss
from cgrpo_core.params import LossParams, ShapingParams

PAPER = LossParams()
NO_CLIP = LossParams(clip_low=None, clip_high=None)
GRPO = LossParams(kind="grpo")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A micro-batch: [B, T] log-probs, entropy, mask; [B] advantages, weights, is_refinement."""

    logprobs: Tensor
    old_logprobs: Tensor
    entropy: Tensor
    advantages: Tensor
    weights: Tensor
    is_refinement: Tensor
    mask: Tensor

    def take(self, rows: list[int]) -> "Rows":
        return Rows(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


def random_rows(seed: int, rows: int = 6, length: int = 7) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(rows, length, generator=rng, dtype=torch.float64) - 0.01
    lengths = torch.randint(1, length + 1, (rows,), generator=rng)
    return Rows(
        logprobs=logprobs,
        old_logprobs=logprobs + 0.4 * torch.randn(rows, length, generator=rng, dtype=torch.float64),
        entropy=torch.rand(rows, length, generator=rng, dtype=torch.float64),
        advantages=torch.randn(rows, generator=rng, dtype=torch.float64),
        weights=torch.rand(rows, generator=rng, dtype=torch.float64) + 0.1,
        is_refinement=torch.arange(rows) % 3 == 1,
        mask=torch.arange(length)[None, :] < lengths[:, None],
    )


def terms_and_gradient(rows: Rows, params: LossParams, denominator: float = 10.0) -> tuple[LossTerms, Tensor]:
    logprobs = rows.logprobs.clone().requires_grad_(True)
    terms = policy_loss(
        logprobs=logprobs,
        old_logprobs=rows.old_logprobs,
        entropy=rows.entropy,
        advantages=rows.advantages,
        weights=rows.weights,
        is_refinement=rows.is_refinement,
        mask=rows.mask,
        params=params,
        denominator=denominator,
    )
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    return terms, gradient


def hand_rows() -> Rows:
    """A response with ratios 1.5, 0.5 and padding, A = 2, weight 1/2; a refinement with p = 0.1, 0.4, 0.9, A = -1."""
    ratios = torch.tensor([[1.5, 0.5, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    new = torch.tensor([[0.3, 0.2, 0.7], [0.1, 0.4, 0.9]], dtype=torch.float64).log()
    return Rows(
        logprobs=new,
        old_logprobs=new - ratios.log(),
        entropy=torch.tensor([[1.0, 2.0, 50.0], [3.0, 4.0, 5.0]], dtype=torch.float64),
        advantages=torch.tensor([2.0, -1.0], dtype=torch.float64),
        weights=torch.tensor([0.5, 1.0], dtype=torch.float64),
        is_refinement=torch.tensor([False, True]),
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
]
