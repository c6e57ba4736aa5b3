"""Matrix products by each library against float64, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrpo_core.logprobs import taken_logprobs
from cgrpo_core.products import SLICE_ROWS, TORCH, products_by

LIBRARIES = ["torch", "onednn"]
SIZES = st.integers(1, 40)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("library", LIBRARIES)
@settings(max_examples=40, deadline=None)
@given(rows=SIZES, inputs=SIZES, outputs=SIZES, seed=st.integers(0, 1000))
def test_products_are_those_of_float64(library: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    by = products_by(library)
    x, weight = draw(seed, 2, rows, inputs), draw(seed + 1, outputs, inputs)
    grad, bias, total = draw(seed + 2, rows, outputs), draw(seed + 3, outputs), draw(seed + 4, outputs, inputs)
    wide = [tensor.double() for tensor in (x, weight, grad, bias, total)]
    close = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(by.linear(x, weight).double(), wide[0] @ wide[1].T, **close)
    torch.testing.assert_close(by.linear(x, weight, bias).double(), wide[0] @ wide[1].T + wide[3], **close)
    torch.testing.assert_close(by.input_gradient(grad, weight).double(), wide[2] @ wide[1], **close)
    torch.testing.assert_close(by.weight_gradient(grad, x[0]).double(), wide[2].T @ wide[0][0], **close)
    by.add_weight_gradient(total, grad, x[0])
    torch.testing.assert_close(total.double(), wide[4] + wide[2].T @ wide[0][0], **close)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_large_weight_gradient_is_added_up_slice_by_slice_and_whole(library: str) -> None:
    vocabulary = 2 * SLICE_ROWS + 5
    grad, x, total = draw(0, 7, vocabulary), draw(1, 7, 3), draw(2, vocabulary, 3)
    expected = total.double() + grad.double().T @ x.double()
    products_by(library).add_weight_gradient(total, grad, x)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("promised", [True, False])
def test_log_probs_and_gradients_by_onednn_are_those_of_float64(promised: bool) -> None:
    targets = torch.randint(0, 301, (3, 9), generator=torch.Generator().manual_seed(4))
    found = []
    for dtype, by in ((torch.float64, TORCH), (torch.float32, products_by("onednn"))):
        hidden, head = (
            draw(seed, *shape).to(dtype).requires_grad_(True) for seed, shape in ((1, (3, 9, 16)), (2, (301, 16)))
        )
        pull = (lambda logprobs, part: torch.full_like(logprobs, 0.5)) if promised else None
        logprobs, entropy = taken_logprobs(
            hidden, head, targets, temperature=0.7, with_entropy=True, chunk_tokens=5, pull=pull, products=by
        )
        loss = logprobs.sum() * 0.5 + (0.0 if promised else entropy.sum())
        found.append([logprobs, entropy, *torch.autograd.grad(loss, (hidden, head))])
    for wide, narrow in zip(*found, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("library", ["", "mkl"])
def test_an_unknown_library_is_refused(library: str) -> None:
    with pytest.raises(ValueError, match="nobody multiplies"):
        products_by(library)


def test_a_torch_without_onednn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no oneDNN"):
        products_by("onednn")
