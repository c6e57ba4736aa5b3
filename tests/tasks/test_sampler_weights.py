"""Weights between the file and the engine: the digest is of what was streamed, and a broken directory is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cgrpo_core.weights import weights_digest
from tasks.engines.faults import WeightsMissing
from tasks.engines.vllm_weights import COLUMNS, WeightStream, columns, compare_served, tensor_names

TENSORS = {
    "a.weight": torch.arange(60, dtype=torch.float32).reshape(3, 20),
    "b.weight": torch.arange(4, dtype=torch.float32) / 7,
}


@pytest.fixture
def directory(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_the_digest_is_of_the_tensors_that_were_yielded(directory):
    stream = WeightStream(str(directory))
    assert {name: tensor.tolist() for name, tensor in stream} == {name: one.tolist() for name, one in TENSORS.items()}
    assert stream.digest() == weights_digest(TENSORS.items())


def test_weights_split_over_files_have_the_digest_of_the_whole(directory, tmp_path_factory):
    parts = tmp_path_factory.mktemp("parts")
    names = {}
    for place, (name, tensor) in enumerate(TENSORS.items()):
        names[name] = f"part-{place}.safetensors"
        save_file({name: tensor}, parts / names[name])
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    stream = WeightStream(str(parts))
    list(stream)
    assert stream.digest() == weights_digest(TENSORS.items())
    (parts / "part-1.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"lacks part-1\.safetensors"):
        WeightStream(str(parts))


def test_a_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="has no safetensors files"):
        WeightStream(str(tmp_path))


def test_a_file_that_was_cut_short_is_refused_before_a_tensor_is_read(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WeightsMissing, match="cannot be read"):
        tensor_names(str(directory))


def test_compared_columns_are_spread_over_the_width():
    assert columns(16) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert columns(3) == [0, 1, 2]
    assert len(columns(4096)) == COLUMNS


class Kernel(torch.nn.Module):
    """A linear layer that dropped its weights for a packed copy, as vLLM's do on the CPU."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0))
        self.packed, self.input_size_per_partition, self.quant_method = weight, weight.shape[1], self

    def apply(self, module, inputs, bias):
        return inputs @ self.packed.T


def test_a_fused_kernel_that_kept_old_weights_is_found_and_named():
    old, new = torch.randn(6, 20), torch.randn(6, 20)
    samples = {"k_proj.weight": new[:4, columns(20)], "v_proj.weight": new[4:, columns(20)], "other.weight": new[0]}
    for served, different in ((new, []), (old, ["k_proj.weight", "v_proj.weight"])):
        model = torch.nn.ModuleDict()
        model["kv"] = Kernel(served)
        model.packed_modules_mapping = {"kv": ["k_proj", "v_proj"]}
        assert compare_served(model, samples) == (different, ["other.weight"])
