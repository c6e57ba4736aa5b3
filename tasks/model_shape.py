"""The shape of a base model, read from its config and the headers of its weights; nothing is loaded or converted."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from cgrpo_core.memory import ModelShape
from tasks.models import find_model


def model_shape(declaration: Mapping[str, Any], home: Path, base_dir: Path) -> ModelShape | None:
    """Return the shape of a base model, or None if it is not at hand or its config does not say."""
    directory = find_model(declaration, home, base_dir)
    if directory is None:
        return None
    config = json.loads((directory / "config.json").read_bytes())
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        return ModelShape(
            parameters=sum(_parameters(path) for path in directory.glob("*.safetensors")),
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
        )
    except KeyError:
        return None


def _parameters(path: Path) -> int:
    """Return how many numbers a safetensors file holds, by its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
