"""Overlays of a declaration: mappings laid over one another, and `--set key=value` read as one."""

from typing import Any

import yaml

from cgrpo_core.errors import UserError
from flows.secrets import refuse_secrets

Overlay = dict[str, Any]

ROOTS = ("inputs", "engines", "params", "gates", "benchmarks")


def overlay(base: Overlay, top: Overlay, by_kind: bool = True) -> Overlay:
    """Return `base` with `top` laid over it: mappings merge, anything else replaces, as does a leaf of another kind.

    Blocks under `params` always merge: there another kind has the same fields. by_kind: whether kinds replace.
    """
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and (not by_kind or value.get("kind", below.get("kind")) == below.get("kind"))
        ):
            value = overlay(below, value, by_kind and key != "params")
        result[key] = value
    return result


def parse_setting(setting: str) -> Overlay:
    """Return `rollout.group_size=4` as an overlay. A key starts in params unless its first word is one of ROOTS."""
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    refuse_secrets({parts[-1]: text}, "--set")  # before anything repeats it
    if not equals or not all(parts):
        raise UserError(f"--set {setting!r} is not key=value", "write it as rollout.group_size=4")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"--set {setting!r}: the value is not valid YAML", "quote it, or write null, true, 4, 1.0e-6"
        ) from None
    refuse_secrets({parts[-1]: value}, "--set")
    value = _number(text, value) if isinstance(value, str) else value
    if parts[0] not in ROOTS:
        parts = ["params", *parts]
    for part in reversed(parts):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _number(text: str, value: str) -> Any:
    """YAML 1.1 reads 1e-5 (no dot) as text; a user means the number."""
    try:
        return float(text) if any(mark in text for mark in "eE") else value
    except ValueError:
        return value
