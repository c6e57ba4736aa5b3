"""Divergences of next-token distributions: hand-worked numbers, gradients of the formula as written, and chunks."""

import math

import pytest
import torch
from torch import Tensor

from cgrpo_core.divergences import Divergence, token_divergences

KINDS: list[Divergence] = ["jsd", "reverse_kl", "forward_kl"]


def as_written(hidden: Tensor, teaching: Tensor, head: Tensor, kind: Divergence, temperature: float = 1.0) -> Tensor:
    p = (hidden @ head.T / temperature).softmax(-1)
    q = (teaching @ head.T / temperature).softmax(-1).detach()
    if kind == "reverse_kl":
        return (p * (p / q).log()).sum(-1)
    if kind == "forward_kl":
        return (q * (q / p).log()).sum(-1)
    m = (p + q) / 2
    return 0.5 * (p * (p / m).log()).sum(-1) + 0.5 * (q * (q / m).log()).sum(-1)


def states(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    hidden, teaching = (torch.randn(3, 5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    return hidden, teaching, torch.randn(11, 4, generator=rng, dtype=torch.float64)


def of_probs(p: list[float], q: list[float], kind: Divergence) -> float:
    """Return D of two distributions over as many tokens, given as hidden states with a head of ones on the diagonal."""
    logs = [torch.tensor([[probs]], dtype=torch.float64).log().clamp(min=-1e4) for probs in (p, q)]
    found = token_divergences(*logs, torch.eye(len(p), dtype=torch.float64), kind=kind, temperature=1.0, chunk_tokens=1)
    return float(found)


def test_hand_worked_numbers() -> None:
    p, q = [0.5, 0.5], [0.25, 0.75]
    assert of_probs(p, q, "reverse_kl") == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-14)
    assert of_probs(p, q, "forward_kl") == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), abs=1e-14)
    half = 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)
    other = 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)
    assert of_probs(p, q, "jsd") == pytest.approx((half + other) / 2, abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradients_are_those_of_the_formula_as_written(kind: Divergence, temperature: float) -> None:
    hidden, teaching, head = states()
    upstream = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for compute in (
        lambda h, w: token_divergences(h, teaching, w, kind=kind, temperature=temperature, chunk_tokens=4),
        lambda h, w: as_written(h, teaching, w, kind, temperature),
    ):
        h, w = hidden.clone().requires_grad_(True), head.clone().requires_grad_(True)
        value = compute(h, w)
        # Through q no gradient flows, so the head's gradient in the formula as written is that through p alone.
        results.append((value.detach(), *torch.autograd.grad((value * upstream).sum(), (h, w))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_any_chunk_gives_the_same(kind: Divergence) -> None:
    hidden, teaching, head = states()
    found = [
        token_divergences(hidden, teaching, head, kind=kind, temperature=1.0, chunk_tokens=chunk)
        for chunk in (1, 4, 100)
    ]
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found[1], found[2], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_are_no_distance_apart_and_pull_nothing(kind: Divergence) -> None:
    hidden, _, head = states()
    hidden.requires_grad_(True)
    value = token_divergences(hidden, hidden, head, kind=kind, temperature=1.0, chunk_tokens=3)
    (gradient,) = torch.autograd.grad(value.sum(), hidden)
    assert float(value.detach().abs().max()) < 1e-14
    assert float(gradient.abs().max()) < 1e-14


def test_a_divergence_is_not_negative_and_jsd_is_at_most_log_2_and_symmetric() -> None:
    hidden, teaching, head = states()
    for kind in KINDS:
        value = token_divergences(30 * hidden, 30 * teaching, head, kind=kind, temperature=1.0, chunk_tokens=9)
        assert float(value.min()) >= -1e-12
        assert value.isfinite().all()
    jsd = token_divergences(30 * hidden, 30 * teaching, head, kind="jsd", temperature=1.0, chunk_tokens=9)
    back = token_divergences(30 * teaching, 30 * hidden, head, kind="jsd", temperature=1.0, chunk_tokens=9)
    assert float(jsd.max()) <= math.log(2) + 1e-12
    torch.testing.assert_close(jsd, back, rtol=1e-10, atol=1e-12)


def test_a_token_that_cannot_occur_adds_nothing() -> None:
    for kind in ("jsd", "reverse_kl"):
        assert math.isfinite(of_probs([1.0, 0.0], [0.5, 0.5], kind))  # type: ignore[arg-type]
    assert of_probs([1.0, 0.0], [0.5, 0.5], "reverse_kl") == pytest.approx(math.log(2))


def test_low_precision_hidden_states_give_float32_divergences_and_gradients_in_their_own_dtype() -> None:
    hidden, teaching, head = (value.to(torch.bfloat16) for value in states())
    hidden.requires_grad_(True)
    value = token_divergences(hidden, teaching, head, kind="jsd", temperature=1.0, chunk_tokens=4)
    (gradient,) = torch.autograd.grad(value.sum(), hidden)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)


def test_what_cannot_be_computed_is_refused() -> None:
    hidden, teaching, head = states()
    with pytest.raises(ValueError, match="cannot be taught"):
        token_divergences(hidden, teaching[:1], head, kind="jsd", temperature=1.0, chunk_tokens=4)
    with pytest.raises(ValueError, match="must be positive"):
        token_divergences(hidden, teaching, head, kind="jsd", temperature=0.0, chunk_tokens=4)
