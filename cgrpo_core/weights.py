"""The digest of a set of weights: what makes "the same policy" a statement that can be checked."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from cgrpo_core.weight_digests import combine_digests, tensor_heading


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """Return sha256 (hex) of name, dtype, shape and little-endian bytes of one tensor (any shape, any device)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    sha = hashlib.sha256(tensor_heading(name, str(tensor.dtype).removeprefix("torch."), tensor.shape))
    sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()


def weights_digest(named_tensors: Iterable[tuple[str, torch.Tensor]], *, threads: int = 1) -> str:
    """Return the digest of (name, tensor) pairs in any order; at most 2 * threads tensors are in memory beside them.

    Names and tensors are those of the exported safetensors file: a tied `lm_head.weight` is left out there and here.
    A tensor must stay as it is until the digest is returned, unless threads is 1. Hashing lets other threads run.
    """
    if threads == 1:
        return combine_digests((name, tensor_digest(name, tensor)) for name, tensor in named_tensors)
    digests: list[tuple[str, Future[str]]] = []
    with ThreadPoolExecutor(threads) as pool:
        for place, (name, tensor) in enumerate(named_tensors):
            digests.append((name, pool.submit(tensor_digest, name, tensor.detach().to("cpu"))))
            if place >= 2 * threads:
                digests[place - 2 * threads][1].result()
        return combine_digests((name, digest.result()) for name, digest in digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsDistance:
    """How far weights are from those that they should be.

    max_abs: the largest difference of one number. relative: the L2 norm of the difference, over that of how far
    training had moved the weights from the base model's; infinite when it had not moved them at all.
    """

    max_abs: float
    relative: float


def weights_distance(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]
) -> WeightsDistance:
    """Return the distance of `found` from `wanted`, tensors of any shape by name, summed up in float64.

    Names of `wanted` count; a tied head that only the base has is left out. Raises KeyError for one that `found` lacks.
    """
    largest = difference = movement = 0.0
    for name, tensor in wanted.items():
        delta = found[name].double() - tensor.double()
        largest = max(largest, float(delta.abs().max()) if delta.numel() else 0.0)
        difference += float(delta.square().sum())
        movement += float((tensor.double() - base[name].double()).square().sum())
    relative = math.sqrt(difference / movement) if movement else math.inf if difference else 0.0
    return WeightsDistance(max_abs=largest, relative=relative)
