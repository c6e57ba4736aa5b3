"""Chunked log-probs against the plain softmax over the whole vocabulary."""

import pytest
import torch
from torch import Tensor

from cgrpo_core.logprobs import taken_logprobs

TEMPERATURE = 0.7


def make_inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    hidden = torch.randn(3, 5, 8, generator=rng, dtype=torch.float64).to(dtype).requires_grad_(True)
    head = torch.randn(13, 8, generator=rng, dtype=torch.float64).to(dtype).requires_grad_(True)
    return hidden, head, torch.randint(0, 13, (3, 5), generator=rng)


def plain(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logs = torch.log_softmax(hidden @ head.T / TEMPERATURE, dim=-1)
    return logs.gather(-1, targets[..., None]).squeeze(-1), -(logs.exp() * logs).sum(-1)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 15, 1000])
@pytest.mark.parametrize("use", ["logprobs", "entropy", "both"])
def test_values_and_gradients_are_those_of_the_plain_softmax(chunk_tokens: int, use: str) -> None:
    hidden, head, targets = make_inputs()
    pull = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    logprobs, entropy = taken_logprobs(
        hidden, head, targets, temperature=TEMPERATURE, with_entropy=True, chunk_tokens=chunk_tokens
    )
    assert entropy is not None
    expected_logprobs, expected_entropy = plain(hidden, head, targets)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-12, atol=1e-13)
    scalars = []
    for first, second in ((logprobs, entropy), (expected_logprobs, expected_entropy)):
        terms = {"logprobs": first * pull[0], "entropy": second * pull[1]}
        scalars.append(sum(value.sum() for name, value in terms.items() if use in (name, "both")))
    found = torch.autograd.grad(scalars[0], (hidden, head))
    expected = torch.autograd.grad(scalars[1], (hidden, head))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_without_entropy_none_comes_back_and_the_logprobs_are_the_same() -> None:
    hidden, head, targets = make_inputs()
    settings = {"temperature": TEMPERATURE, "chunk_tokens": 4}
    with_entropy, _ = taken_logprobs(hidden, head, targets, with_entropy=True, **settings)
    without, entropy = taken_logprobs(hidden, head, targets, with_entropy=False, **settings)
    assert entropy is None
    assert torch.equal(with_entropy, without)
    (gradient,) = torch.autograd.grad(without.sum(), head)
    (expected,) = torch.autograd.grad(plain(hidden, head, targets)[0].sum(), head)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-12)


def test_half_precision_is_widened_before_the_log_sum_exp() -> None:
    hidden, head, targets = make_inputs(torch.bfloat16)
    logprobs, entropy = taken_logprobs(
        hidden, head, targets, temperature=TEMPERATURE, with_entropy=True, chunk_tokens=4
    )
    assert entropy is not None
    assert logprobs.dtype == entropy.dtype == torch.float32
    logits = (hidden @ head.T).float() / TEMPERATURE
    expected = torch.log_softmax(logits, -1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(logprobs.sum(), (hidden, head))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]


def test_large_logits_neither_overflow_nor_give_a_negative_zero_entropy() -> None:
    hidden = torch.tensor([[[1000.0]]])
    head = torch.tensor([[1.0], [0.0], [-1.0]])
    targets = torch.tensor([[0]])
    logprobs, entropy = taken_logprobs(hidden, head, targets, temperature=1.0, with_entropy=True, chunk_tokens=8)
    assert entropy is not None
    assert (logprobs.item(), entropy.item()) == (0.0, 0.0)


def test_a_frozen_head_gets_no_gradient_and_costs_none() -> None:
    hidden, head, targets = make_inputs()
    logprobs, _ = taken_logprobs(hidden, head.detach(), targets, temperature=1.0, with_entropy=False, chunk_tokens=4)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_no_table_of_tokens_times_vocabulary_is_kept_for_the_backward_pass() -> None:
    hidden, head, targets = make_inputs()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        taken_logprobs(hidden, head, targets, temperature=1.0, with_entropy=True, chunk_tokens=2)
    assert kept
    assert max(kept) <= max(hidden.numel(), head.numel()) < 15 * 13


@pytest.mark.parametrize(("temperature", "chunk_tokens"), [(0.0, 4), (-1.0, 4), (1.0, 0)])
def test_settings_without_meaning_are_refused(temperature: float, chunk_tokens: int) -> None:
    hidden, head, targets = make_inputs()
    with pytest.raises(ValueError, match=r"temperature|chunk_tokens"):
        taken_logprobs(hidden, head, targets, temperature=temperature, with_entropy=False, chunk_tokens=chunk_tokens)
