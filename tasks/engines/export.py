"""Weights in Hugging Face format: config and tokenizer of the base model, safetensors, a tied head left out."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError

WEIGHTS_FILE = "model.safetensors"
COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def create_directory(directory: str) -> Path:
    """Make and return a directory, or take an empty one. Raises UserError if it holds anything."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise UserError(f"{directory} is not empty", "export and checkpoint only write new directories")
    return path


def write_tensors(path: Path, named_tensors: Iterable[tuple[str, Any]]) -> None:
    """Write (name, tensor) pairs as one safetensors file; tensors must stay valid until all are read."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in named_tensors}, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name; nothing in such a file can run."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors


def read_model(directory: Path) -> dict[str, Any]:
    """Return the weights of a model directory by name, however many files hold them; a checkpoint's moments are not."""
    tensors: dict[str, Any] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        tensors |= read_tensors(path)
    return tensors


def copy_model_files(base_dir: str, directory: Path, dtype: str) -> None:
    """Copy config, tokenizer and templates of the base model, with `dtype` (as "float32") in the config."""
    for source in sorted(Path(base_dir).iterdir()):
        if source.suffix in COPIED_SUFFIXES and not source.name.endswith(".index.json"):
            shutil.copyfile(source, directory / source.name)
    config_path = directory / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config_path.write_text(json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
