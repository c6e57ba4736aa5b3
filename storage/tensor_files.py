"""Weights in safetensors files, read without the library of tensors: what their digest is of.

A file begins with the length of its header (8 bytes, little-endian); the header is JSON, a tensor's name to its type,
shape and place in what follows. https://huggingface.co/docs/safetensors
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cgrpo_core.weight_digests import combine_digests, tensor_heading

LENGTH_BYTES = 8
BLOCK = 1 << 22
TYPES = {  # type in a header -> (type in a digest, bytes)
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


def header_sha256(path: Path) -> str:
    """Return sha256 (hex) of all that stands before the tensors."""
    with path.open("rb") as file:
        return hashlib.sha256(_header(file, path)).hexdigest()


def tensors_sha256(paths: Iterable[Path]) -> str:
    """Return the digest of the weights in files (cgrpo_core/weights.py); raises ValueError for what is no such file."""
    return combine_digests(pair for path in paths for pair in _digests(path))


def _digests(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        header = _header(file, path)
        try:
            tensors: dict[str, Any] = json.loads(header[LENGTH_BYTES:])
            tensors.pop("__metadata__", None)
            for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
                yield name, _digest(file, len(header), name, tensor)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name} is no safetensors file: {error}") from None


def _digest(file: Any, begin: int, name: str, tensor: dict[str, Any]) -> str:
    kind, width = TYPES[tensor["dtype"]]
    shape, (start, end) = tuple(tensor["shape"]), tensor["data_offsets"]
    if end - start != width * math.prod(shape):
        raise ValueError(f"tensor {name} has {end - start} bytes, which is not its shape")
    sha = hashlib.sha256(tensor_heading(name, kind, shape))
    file.seek(begin + start)
    while start < end:
        block = file.read(min(BLOCK, end - start))
        if not block:
            raise ValueError(f"tensor {name} is cut short")
        sha.update(block)
        start += len(block)
    return sha.hexdigest()


def _header(file: Any, path: Path) -> bytes:
    first = file.read(LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if len(first) < LENGTH_BYTES or length > path.stat().st_size:
        raise ValueError(f"{path.name} is no safetensors file: it is cut short")
    header: bytes = first + file.read(length)
    return header
