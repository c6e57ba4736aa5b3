"""The digest of a set of weights: what makes "the same policy" a statement that can be checked."""

import hashlib
from collections.abc import Iterable

import torch


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """Return sha256 (hex) of name, dtype, shape and little-endian bytes of one tensor (any shape, any device)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    header = f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode()
    sha = hashlib.sha256(header)
    sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()


def combine_digests(digests: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a policy from (name, tensor digest) pairs in any order."""
    sha = hashlib.sha256()
    for name, value in sorted(digests):
        sha.update(f"{name}={value}\n".encode())
    return sha.hexdigest()


def weights_digest(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the digest of (name, tensor) pairs in any order, one tensor in memory at a time.

    Names and tensors are those of the exported safetensors file: a tied `lm_head.weight` is left out there and here.
    """
    return combine_digests((name, tensor_digest(name, tensor)) for name, tensor in named_tensors)
