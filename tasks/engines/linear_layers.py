"""Linear layers of a model whose products are made by another library than torch's choice."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cgrpo_core.products import Products


def use_products(model: torch.nn.Module, products: Products) -> None:
    """Have every torch.nn.Linear in `model` multiply by `products`; the parameters stay the same objects."""
    for layer in model.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = _Linear
            layer.products = products


class _Linear(torch.nn.Linear):
    products: Any  # Products; torch wants plain attributes declared

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _Product.apply(input, self.weight, self.bias, self.products)
        return found


class _Product(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] or None -> [..., O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return products.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            ctx.products.input_gradient(grad, weight) if of_x else None,
            ctx.products.weight_gradient(flat, x.reshape(-1, x.shape[-1])) if of_weight else None,
            flat.sum(dim=0) if of_bias else None,
            None,
        )
