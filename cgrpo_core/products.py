"""Matrix products of activations and weights, and of their gradients, by one of two libraries.

On the CPU torch multiplies float32 with MKL, which on an AMD processor with AVX-512 makes half of what oneDNN makes, a
library that torch carries too (docs/performance.md). Other processors were not measured.
Both add up in float32 in an order that the shapes and the number of threads decide.
"""

from typing import Protocol

import torch
from torch import Tensor

ROWS = 32
SLICE_ROWS = 1024  # of a weight gradient that is added up: what is held beside it is SLICE_ROWS * H values


class Products(Protocol):
    """x [..., I], weight [O, I], grad [..., O]; of weight gradients total [O, I], grad [N, O] and x [N, I]."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x @ weight.T + bias [..., O]."""
        ...

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """Return grad @ weight [..., I]."""
        ...

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return grad.T @ x [O, I]."""
        ...

    def add_weight_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        """total += grad.T @ x, in place, without a table of total's size where the device can."""
        ...


class TorchProducts:
    """By whatever torch chooses for the device and dtype."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Products."""
        return torch.nn.functional.linear(x, weight, bias)

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """See Products."""
        return grad @ weight

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """See Products."""
        return grad.T @ x

    def add_weight_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        """See Products."""
        if total.dtype == grad.dtype:
            total.addmm_(grad.T, x)
        elif total.is_cuda:
            torch.addmm(total, grad.T, x, out_dtype=total.dtype, out=total)
        else:
            total += grad.T @ x


class OneDnnProducts:
    """By oneDNN: float32 tensors on the CPU only.

    It compiles kernels for each shape that it meets, and keeps something of them for good: half a gigabyte after a few
    thousand numbers of tokens. So rows are filled up with zeros to a multiple of ROWS, which changes no sum.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See Products."""
        flat = x.reshape(-1, x.shape[-1])
        found = _multiplied(_filled_up(flat), weight, bias)[: flat.shape[0]]
        return found.view(*x.shape[:-1], weight.shape[0])

    def input_gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """See Products."""
        return self.linear(grad, weight.T)

    def weight_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """See Products."""
        return _multiplied(_filled_up(grad).T, _filled_up(x).T)

    def add_weight_gradient(self, total: Tensor, grad: Tensor, x: Tensor) -> None:
        """See Products."""
        columns, rows = _filled_up(x).T.contiguous(), _filled_up(grad)
        for start in range(0, total.shape[0], SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            total[part] += _multiplied(rows[:, part].T, columns)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _filled_up(x: Tensor) -> Tensor:
    missing = -x.shape[0] % ROWS
    return torch.nn.functional.pad(x, (0, 0, 0, missing)) if missing else x


TORCH = TorchProducts()


def products_by(library: str) -> Products:
    """Return the products of `torch` or `onednn`. Raises ValueError for another, or one that this torch lacks."""
    if library == "torch":
        return TORCH
    if library != "onednn":
        raise ValueError(f"nobody multiplies by {library!r}")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ValueError("this build of torch has no oneDNN")
    return OneDnnProducts()
