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


@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
def test_a_promised_gradient_saves_a_pass_and_changes_nothing(chunk_tokens: int) -> None:
    hidden, head, targets = make_inputs()
    settings = {"temperature": TEMPERATURE, "with_entropy": True, "chunk_tokens": chunk_tokens}

    def pull(logprobs: Tensor, part: slice) -> Tensor:
        assert logprobs.shape == targets.flatten()[part].shape
        return 2.0 * logprobs

    plainly, _ = taken_logprobs(hidden, head, targets, **settings)
    expected = torch.autograd.grad(plainly.square().sum(), (hidden, head))
    promised, _ = taken_logprobs(hidden, head, targets, **settings, pull=pull)
    multiplied = ProductCounter()
    with multiplied:
        found = torch.autograd.grad(promised.square().sum(), (hidden, head))
    assert torch.equal(promised, plainly)
    assert multiplied.count == 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("use", ["another loss", "entropy too", "entropy alone"])
def test_a_promise_that_is_not_kept_costs_the_pass_and_gives_the_true_gradient(use: str) -> None:
    hidden, head, targets = make_inputs()
    gradients = []
    for pull in (None, lambda logprobs, part: torch.ones_like(logprobs)):
        logprobs, entropy = taken_logprobs(
            hidden, head, targets, temperature=TEMPERATURE, with_entropy=True, chunk_tokens=4, pull=pull
        )
        assert entropy is not None
        loss = {
            "another loss": logprobs.square().sum(),
            "entropy too": logprobs.sum() + entropy.sum(),
            "entropy alone": entropy.sum(),
        }[use]
        gradients.append(torch.autograd.grad(loss, (hidden, head)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-13)


def test_without_gradient_a_promise_computes_nothing() -> None:
    hidden, head, targets = make_inputs()

    def pull(logprobs: Tensor, part: slice) -> Tensor:
        raise AssertionError("nothing is going to be differentiated")

    with torch.no_grad():
        taken_logprobs(hidden, head, targets, temperature=1.0, with_entropy=False, chunk_tokens=4, pull=pull)


def test_a_logit_of_minus_infinity_adds_nothing_to_the_entropy_and_gets_no_gradient() -> None:
    hidden, targets = torch.ones(1, 1, 1, dtype=torch.float64), torch.tensor([[0]])
    head = torch.tensor([[0.0], [0.0], [-torch.inf]], dtype=torch.float64, requires_grad=True)
    logprobs, entropy = taken_logprobs(hidden, head, targets, temperature=1.0, with_entropy=True, chunk_tokens=1)
    assert entropy is not None
    torch.testing.assert_close(entropy.exp(), torch.full((1, 1), 2.0, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), head)
    assert gradient.isfinite().all()
    assert gradient[2] == 0


class ProductCounter(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.__name__.startswith(("mm", "addmm", "bmm"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("promised", [True, False])
def test_an_accumulated_head_gradient_is_the_returned_one_added_to_what_is_there(promised: bool) -> None:
    pull = (lambda logprobs, part: torch.ones_like(logprobs)) if promised else None
    settings = {"temperature": 0.9, "with_entropy": False, "chunk_tokens": 4, "pull": pull}
    hidden, head, targets = make_inputs()
    expected = torch.autograd.grad(taken_logprobs(hidden, head, targets, **settings)[0].sum(), (hidden, head))
    for _ in range(2):
        taken_logprobs(hidden, head, targets, **settings, accumulate=True)[0].sum().backward()
    torch.testing.assert_close(hidden.grad, 2 * expected[0])
    torch.testing.assert_close(head.grad, 2 * expected[1])


def test_the_gradient_of_a_head_that_is_also_the_embedding_is_the_sum_of_both_uses() -> None:
    _, head, targets = make_inputs()
    grads = []
    for accumulate in (False, True):
        own = head.detach().clone().requires_grad_(True)
        logprobs, _ = taken_logprobs(
            own[targets], own, targets, temperature=1.0, with_entropy=False, chunk_tokens=4, accumulate=accumulate
        )
        logprobs.sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_nothing_is_accumulated_into_what_is_no_leaf_or_wants_no_gradient() -> None:
    hidden, head, targets = make_inputs()
    settings = {"temperature": 1.0, "with_entropy": False, "chunk_tokens": 4, "accumulate": True}
    with pytest.raises(ValueError, match="leaf"):
        taken_logprobs(hidden, head * 2, targets, **settings)
    frozen = head.detach()
    taken_logprobs(hidden, frozen, targets, **settings)[0].sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None
