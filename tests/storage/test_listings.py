"""Files are listed by what they hold; weights by header and tensors, which leaves no byte unseen."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from storage_rows import key_of

from cgrpo_core.weights import weights_digest
from storage.listings import entry_of, entry_of_weights, is_as_listed, read_entry
from storage.policies import complete, damaged_files, publish_directory
from storage.tensor_files import TYPES, tensors_sha256

KEY = key_of("update 1")
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16), "empty": torch.zeros(0)}
DIGEST = weights_digest(TENSORS.items())


def write(directory: Path) -> None:
    save_file(TENSORS, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text("{}")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights")
    write(directory)
    return directory / "model.safetensors"


def test_weights_are_listed_by_the_digest_that_was_given_and_everything_else_by_its_bytes(tmp_path: Path) -> None:
    relative = publish_directory(tmp_path, "weights", KEY, write, DIGEST)
    assert complete(tmp_path, relative)
    assert damaged_files(tmp_path, relative) == []
    assert f'"weights_sha256":"{DIGEST}"' in (tmp_path / relative / "DIGESTS.json").read_text().replace(" ", "")


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name, _ in TYPES.values()], ids=str)
def test_the_digest_is_that_of_the_tensors_whatever_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"x": torch.arange(6).view(3, 1, 2).to(dtype), "a": torch.tensor(1).to(dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert tensors_sha256([tmp_path / "model.safetensors"]) == weights_digest(tensors.items())


def test_a_file_that_is_none_of_tensors_is_named(tmp_path: Path) -> None:
    for content in (b"", b"short", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b"\x07\0\0\0\0\0\0\0" + b'{"a":1}'):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            tensors_sha256([path])


def test_weights_of_another_digest_are_damaged(tmp_path: Path) -> None:
    relative = publish_directory(tmp_path, "weights", KEY, write, "0" * 64)
    assert damaged_files(tmp_path, relative) == ["model.safetensors"]


@pytest.mark.parametrize("by_tensors", [True, False])
@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unseen(weights: Path, by_tensors: bool, place: int, flip: int) -> None:
    entry = entry_of_weights(weights, DIGEST) if by_tensors else entry_of(weights)
    content = bytearray(weights.read_bytes())
    assert is_as_listed(weights, entry)
    content[place % len(content)] ^= flip
    changed = weights.with_name("changed.safetensors")
    changed.write_bytes(bytes(content))
    assert not is_as_listed(changed, entry)


@pytest.mark.parametrize("size", [0, 4, 8, 60, -1])
def test_a_file_cut_short_or_gone_is_not_as_listed(weights: Path, tmp_path: Path, size: int) -> None:
    entry = entry_of_weights(weights, DIGEST)
    assert not is_as_listed(tmp_path / "absent", entry)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:size])
    assert not is_as_listed(cut, entry)
    assert not is_as_listed(cut, {**entry, "bytes": cut.stat().st_size})


@pytest.mark.parametrize("entry", [{}, {"bytes": 1}, {"bytes": 1, "header_sha256": "a"}, {"sha256": "a"}, None])
def test_an_entry_without_its_parts_is_none(entry: object) -> None:
    with pytest.raises((KeyError, TypeError)):
        read_entry(entry)
