"""What the digest of a policy is of, where the bytes of its tensors are at hand. Nothing here imports torch."""

import hashlib
from collections.abc import Iterable, Sequence


def tensor_heading(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Return what stands before a tensor's little-endian bytes in what its digest is of; dtype as torch prints it."""
    return f"{name}|{dtype}|{tuple(shape)}|".encode()


def combine_digests(digests: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a policy from (name, tensor digest) pairs in any order."""
    sha = hashlib.sha256()
    for name, value in sorted(digests):
        sha.update(f"{name}={value}\n".encode())
    return sha.hexdigest()
