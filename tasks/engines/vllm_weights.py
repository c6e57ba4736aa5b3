"""Weights on their way into vLLM: their digest is taken of the very tensors that vLLM gets.

That vLLM then serves them is checked apart. On the CPU it packs linear weights for its kernels and drops the
originals, so they cannot be read back; but a linear layer given the j-th unit vector answers with column j of its
weights, exactly. A few columns of every tensor are compared with the file: a tensor that was left behind cannot hide.
One is left behind by vLLM 0.32 itself: a tied output head keeps its old packed copy when weights are reloaded.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cgrpo_core.weight_digests import combine_digests
from cgrpo_core.weights import tensor_digest
from tasks.engines.faults import WeightsMissing

COLUMNS = 8


def weight_files(weights_dir: str) -> list[Path]:
    """Return the safetensors files of a directory. Raises WeightsMissing if one is missing, or there is none."""
    directory = Path(weights_dir)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = sorted(directory.glob("*.safetensors"))
    absent = [path.name for path in files if not path.is_file()]
    if absent or not files:
        what = f"lacks {', '.join(absent)}" if absent else "has no safetensors files"
        raise WeightsMissing(f"{weights_dir} {what}", "give a directory in Hugging Face format, or resume the run")
    return files


def tensor_names(weights_dir: str) -> set[str]:
    """Return the names of all tensors. Raises WeightsMissing for a file that is cut short."""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for path in weight_files(weights_dir):
        try:
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
        except SafetensorError as error:
            raise WeightsMissing(f"{path} cannot be read: {error}", "remove the directory and resume the run") from None
    return names


class WeightStream:
    """Yields (name, tensor) once, from file to engine; keeps the digest of each tensor and a few of its columns.

    A thread hashes while the engine packs what it got. The tensors are views of the mapped file, which nobody changes,
    so those that wait to be hashed take no memory.
    """

    def __init__(self, weights_dir: str) -> None:
        self._files = weight_files(weights_dir)
        self._digests: list[tuple[str, Future[str]]] = []
        self.hashing_seconds = 0.0
        self.samples: dict[str, torch.Tensor] = {}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors import safe_open

        with ThreadPoolExecutor(1, thread_name_prefix="digest") as hashing:
            for path in self._files:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - no mapping: it has keys() and no iterator
                        tensor = file.get_tensor(name)
                        self._digests.append((name, hashing.submit(self._hash, name, tensor)))
                        if tensor.ndim in (1, 2):
                            self.samples[name] = sample_columns(tensor)
                        yield name, tensor

    def digest(self) -> str:
        """Return the digest of all that was yielded."""
        return combine_digests((name, digest.result()) for name, digest in self._digests)

    def _hash(self, name: str, tensor: torch.Tensor) -> str:
        began = time.perf_counter()
        digest = tensor_digest(name, tensor)
        self.hashing_seconds += time.perf_counter() - began
        return digest


def sample_columns(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of a tensor is compared: a vector whole, a few columns of a matrix."""
    return tensor if tensor.ndim == 1 else tensor[:, columns(tensor.shape[1])].clone()


def columns(width: int) -> list[int]:
    """Return the columns that are compared, spread over the width."""
    return sorted({(2 * place + 1) * width // (2 * COLUMNS) for place in range(COLUMNS)})


def refresh_tied_head(model: Any) -> None:
    """Pack the output head anew from the embedding that it shares; vLLM's reload does not."""
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        head.quant_method.process_weights_after_loading(head)


def compare_served(model: Any, samples: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Return the names of tensors that the model serves otherwise, and of those that could not be compared.

    samples: name in the file -> the columns (rows, at most COLUMNS) of a matrix, or a whole vector.
    """
    packed: dict[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
    compared: set[str] = set()
    different: list[str] = []
    for path, module in model.named_modules():
        for kind in ("weight", "bias"):
            names = _file_names(path, kind, packed, samples)
            if not names or getattr(module, kind, None) is None:
                continue
            expected = torch.cat([samples[name] for name in names])
            served = _served(module, kind, expected)
            compared.update(names)
            if not torch.equal(served[: expected.shape[0]].cpu(), expected.to(served.dtype)):
                different.extend(names)
    different.extend(_tied_head_differs(model, samples))
    return different, sorted(set(samples) - compared)


def _file_names(path: str, kind: str, packed: dict[str, list[str]], samples: dict[str, torch.Tensor]) -> list[str]:
    prefix, _, leaf = path.rpartition(".")
    names = [".".join(filter(None, (prefix, part, kind))) for part in packed.get(leaf, [leaf])]
    return names if all(name in samples for name in names) else []


def _served(module: Any, kind: str, expected: torch.Tensor) -> torch.Tensor:
    """Return what the module serves where the file has `expected`: by its kernel, or as a parameter if it has none."""
    parameter = getattr(module, kind)
    if kind == "weight" and expected.ndim == 2:
        if parameter.ndim == 2 and "Embedding" in type(module).__name__:
            return parameter[:, columns(parameter.shape[1])]
        return _columns_by_kernel(module, parameter)
    return parameter


def _columns_by_kernel(module: Any, parameter: torch.Tensor) -> torch.Tensor:
    width = int(getattr(module, "input_size_per_partition", 0) or module.embedding_dim)
    chosen = columns(width)
    units = torch.zeros(len(chosen), width, dtype=parameter.dtype, device=parameter.device)
    units[torch.arange(len(chosen)), chosen] = 1
    with torch.inference_mode():
        out: torch.Tensor = module.quant_method.apply(module, units, None)
    return out.T


def _tied_head_differs(model: Any, samples: dict[str, torch.Tensor]) -> list[str]:
    head = getattr(model, "lm_head", None)
    if head is None or "lm_head.weight" in samples or not getattr(model.config, "tie_word_embeddings", False):
        return []
    name = next((name for name in samples if name.endswith("embed_tokens.weight")), None)
    if name is None:
        return []
    served = _columns_by_kernel(head, head.weight)[: samples[name].shape[0]]
    return [] if torch.equal(served.cpu(), samples[name].to(served.dtype)) else [f"{name} as the tied output head"]
