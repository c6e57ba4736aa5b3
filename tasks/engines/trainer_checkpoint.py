"""A checkpoint: weights, optimizer, scheduler and RNG in a plain format that loads under any world size and ZeRO stage.

    config.json, tokenizer files      of the base model: the directory is a Hugging Face model by itself
    model.safetensors                 float32 weights that the optimizer steps on, by exported name
    exp_avg.safetensors               first moments of AdamW, float32, same names and shapes; absent before a step
    exp_avg_sq.safetensors            second moments, likewise
    rng.safetensors                   `torch`: the state of the CPU generator, uint8
    state.json                        format, weights_sha256 (of the exported weights), optimizer_step, adam_step,
                                      scheduler {kind, learning_rate}, dtype of training

DeepSpeed's own checkpoints are pickles, one a rank, tied to the partitioning; these hold no code and no partition.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cgrpo_core.errors import UserError
from tasks.engines.export import WEIGHTS_FILE, copy_model_files, create_directory, read_tensors, write_tensors
from tasks.engines.zero import OPTIMIZER_STATES, ZeroEngine

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    """The scalars of a checkpoint; what the trainer knows besides its tensors."""

    weights_sha256: str
    optimizer_step: int
    adam_step: int
    learning_rate: float
    dtype: str


def write_checkpoint(engine: ZeroEngine, directory: str, base_dir: str, state: TrainerState, *, writes: bool) -> None:
    """Write a checkpoint (collective); only the rank that `writes` touches the disk."""
    path = create_directory(directory) if writes else None
    if path:
        copy_model_files(base_dir, path, "float32")
    _write_gathered(path, WEIGHTS_FILE, engine.named_masters())
    if state.adam_step:
        for key in OPTIMIZER_STATES:
            _write_gathered(path, f"{key}.safetensors", engine.named_optimizer_state(key))
    if path:
        write_tensors(path / "rng.safetensors", [("torch", torch.get_rng_state())])
        scalars = asdict(state)
        scalars["scheduler"] = {"kind": "constant", "learning_rate": scalars.pop("learning_rate")}
        text = json.dumps({"format": FORMAT, **scalars}, indent=2, sort_keys=True)
        (path / "state.json").write_text(text + "\n", encoding="utf-8")


def _write_gathered(path: Path | None, name: str, named_tensors: Any) -> None:
    """Write one file from a collective iterator; the other ranks only take part in it."""
    if path is None:
        for _ in named_tensors:
            pass
    else:
        write_tensors(path / name, named_tensors)


def read_state(checkpoint_dir: str) -> TrainerState:
    """Return the scalars of a checkpoint. Raises UserError if it is missing, incomplete or of another format."""
    path = Path(checkpoint_dir) / "state.json"
    hint = "give a directory that save_checkpoint wrote"
    try:
        scalars = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{checkpoint_dir} is not a checkpoint: it has no state.json", hint) from None
    if scalars.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not of checkpoint format {FORMAT}", hint)
    scalars["learning_rate"] = scalars.pop("scheduler")["learning_rate"]
    return TrainerState(**scalars)


def restore_checkpoint(engine: ZeroEngine, checkpoint_dir: str, state: TrainerState, *, dtype: str) -> None:
    """Set optimizer and RNG, and the float32 weights where training runs in another dtype (collective).

    The engine was built from the same directory, so in float32 it has the weights already.
    """
    path = Path(checkpoint_dir)
    if state.adam_step:
        engine.create_optimizer_state()
        for key in OPTIMIZER_STATES:
            engine.set_optimizer_state(key, read_tensors(path / f"{key}.safetensors"))
        engine.set_adam_step(state.adam_step)
    if dtype != "float32":
        engine.set_masters(read_tensors(path / WEIGHTS_FILE))
    torch.set_rng_state(read_tensors(path / "rng.safetensors")["torch"])
