"""The policy of an engine whose model never changes: version 0, known by the digest of its weights."""

import json
import os
from pathlib import Path
from typing import Any

from cgrpo_core.records import Policy
from storage.durable import json_bytes, write_bytes
from tasks.models import model_weights_digest


def fixed_policy(home: Path, model: dict[str, Any], directory: Path) -> Policy:
    """Return version 0 of a model, which lies in `directory`. Its weights are read for their digest once a home."""
    known = known_fixed_policy(home, model)
    if known is not None:
        return known
    path = _fixed_file(home, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights_sha256 = model_weights_digest(directory)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    write_bytes(part, json_bytes({"weights_sha256": weights_sha256, "model": model["identity"]}))
    part.replace(path)
    return _version_0(weights_sha256)


def known_fixed_policy(home: Path, model: dict[str, Any]) -> Policy | None:
    """Return version 0 of a fixed model, if its weights were read in this home before."""
    path = _fixed_file(home, model)
    return _version_0(json.loads(path.read_text())["weights_sha256"]) if path.is_file() else None


def _fixed_file(home: Path, model: dict[str, Any]) -> Path:
    return home / "engines" / f"fixed-{model['identity']['digest'][:20]}.json"


def _version_0(weights_sha256: str) -> Policy:
    return Policy(policy_version=0, parent=None, weights_sha256=weights_sha256, weights=None, checkpoint=None)
