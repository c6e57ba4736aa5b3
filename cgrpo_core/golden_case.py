"""Typed reading of a golden case: every field is checked for what it should be before a number is computed from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from cgrpo_core.release_losses import OnOffFlags

RESHAPES = ("no_reshape", "logp", "p_logp", "square_root", "pow", "p_div_p_0.1", "p_div_p_0.3", "p_div_p_0.5")
SECTIONS = ("outputs", "metrics")  # where expected scalars stand; a name in them is read as "section.name"


class Malformed(ValueError):
    """A case that cannot be computed: a field is missing, or is not what it should be."""


class Case:
    """One golden case. Every method raises Malformed, naming the field, when that is not what is asked for."""

    def __init__(self, case: Mapping[str, object]) -> None:
        self._case = case
        self._read: set[str] = set()
        self.dtype_name = str(case.get("dtype", "float64"))
        if self.dtype_name not in ("float32", "float64"):
            raise Malformed(f"dtype {self.dtype_name!r} is neither float32 nor float64")
        self._dtype = torch.float32 if self.dtype_name == "float32" else torch.float64

    def _get(self, name: str) -> object:
        if name not in self._case:
            raise Malformed(f"field {name!r} is missing")
        return self._case[name]

    def text(self, name: str) -> str:
        """Return a string."""
        value = self._get(name)
        if not isinstance(value, str):
            raise Malformed(f"{name} is {value!r}, not a string")
        return value

    def choice(self, name: str, known: Sequence[str]) -> str:
        """Return a string out of `known`."""
        value = self.text(name)
        if value not in known:
            raise Malformed(f"{name} {value!r} is unknown; known: {', '.join(known)}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise Malformed(f"{name} is {value!r}, neither true nor false")
        return value

    def number(self, name: str, fallback: float | None = None) -> float:
        """Return a number; `fallback`, if there is one, stands for null and for an absent field."""
        if fallback is not None and self._case.get(name) is None:
            return fallback
        return _float(name, self._get(name))

    def count(self, name: str) -> int:
        """Return a whole number of 1 or more."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Malformed(f"{name} is {value!r}, not a whole number of 1 or more")
        return value

    def row(self, name: str) -> Tensor:
        """Return [N] numbers in the case's dtype."""
        tensor = _tensor(name, self._get(name)).to(self._dtype)
        if tensor.dim() != 1 or not tensor.numel():
            raise Malformed(f"{name} is not a list of numbers")
        return tensor

    def grid(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Return [B][T] numbers in the case's dtype, of `shape` if given."""
        return _grid(name, self._get(name), shape).to(self._dtype)

    def mask(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return [B][T] zeros and ones."""
        tensor = self.grid(name, shape)
        if not ((tensor == 0) | (tensor == 1)).all():
            raise Malformed(f"{name} holds something else than 0 and 1")
        return tensor

    def token_ids(self, name: str) -> Tensor:
        """Return [B][T] whole numbers."""
        return _whole(name, _grid(name, self._get(name), None))

    def token_id_or_ids(self, name: str) -> int | list[int]:
        """Return a token id, or a list of them."""
        ids: int | list[int] = _whole(name, _tensor(name, self._get(name))).tolist()
        return ids

    def labels(self, name: str, rows: int) -> list[str | int]:
        """Return one string or whole number a row."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != rows or not all(isinstance(item, str | int) for item in value):
            raise Malformed(f"{name} is not a list of {rows} strings or whole numbers")
        return value

    def sizes(self, name: str, total: int) -> list[int]:
        """Return whole numbers of 1 or more that add up to `total`."""
        value = self._get(name)
        if not isinstance(value, list) or not all(type(item) is int and item > 0 for item in value):
            raise Malformed(f"{name} is not a list of whole numbers of 1 or more")
        if sum(value) != total:
            raise Malformed(f"{name} adds up to {sum(value)}, but there are {total} rows")
        return value

    def on_off_flags(self, shape: Sequence[int]) -> tuple[OnOffFlags, Tensor | None]:
        """Return the flags of the release's loss, and target_probs [B][T] or None."""
        given = self._get("flags")
        if not isinstance(given, Mapping):
            raise Malformed("flags is not a JSON object")
        known = {item.name for item in fields(OnOffFlags)}
        unknown = sorted(set(given) - known - {"target_probs"})
        if unknown:
            raise Malformed(f"unknown flags: {', '.join(unknown)}")
        values = {name: _flag(name, value) for name, value in given.items() if name in known}
        target = given.get("target_probs")
        target_probs = None if target is None else _grid("flags.target_probs", target, shape).to(self._dtype)
        return OnOffFlags(**values), target_probs  # type: ignore[arg-type]

    def expected(self, name: str) -> Tensor:
        """Return the expected value of an output in float64; `section.name` is looked up in that section."""
        self._read.add(name)
        section, _, key = name.partition(".")
        if not key:
            return _tensor(name, self._get(name))
        values = self._section(section)
        if key not in values:
            raise Malformed(f"field {name!r} is missing")
        return _tensor(name, values[key])

    def unread(self) -> list[str]:
        """Return the names of expected scalars that nobody asked for."""
        names = [f"{section}.{key}" for section in SECTIONS if section in self._case for key in self._section(section)]
        return [name for name in names if name not in self._read]

    def _section(self, name: str) -> Mapping[str, object]:
        section = self._get(name)
        if not isinstance(section, Mapping):
            raise Malformed(f"{name} is not a JSON object")
        return section


def _float(name: str, value: object) -> float:
    if value == "NaN":
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} holds {value!r}, not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise Malformed(f"{name} holds a number too large for float64") from error


def _tensor(name: str, value: object, dimensions: int = 2) -> Tensor:
    """Return a number or nested lists of numbers as a float64 tensor of at most so many dimensions."""
    if not isinstance(value, list):
        return torch.tensor(_float(name, value), dtype=torch.float64)
    if dimensions == 0:
        raise Malformed(f"{name} is nested more deeply than rows of numbers")
    parts = [_tensor(name, item, dimensions - 1) for item in value]
    if not parts:
        return torch.empty(0, dtype=torch.float64)
    if any(part.shape != parts[0].shape for part in parts):
        raise Malformed(f"{name} has rows of different lengths")
    return torch.stack(parts)


def _grid(name: str, value: object, shape: Sequence[int] | None) -> Tensor:
    tensor = _tensor(name, value)
    if tensor.dim() != 2 or not tensor.numel():
        raise Malformed(f"{name} is not a list of rows of numbers")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise Malformed(f"{name} has the shape {list(tensor.shape)}, not {list(shape)}")
    return tensor


def _whole(name: str, tensor: Tensor) -> Tensor:
    if not (tensor == tensor.round()).all():
        raise Malformed(f"{name} holds something else than whole numbers")
    return tensor.long()


def _flag(name: str, value: object) -> object:
    """Return the value of a flag, which must be of the type of its default."""
    default = getattr(OnOffFlags(), name)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise Malformed(f"flags.{name} is {value!r}, neither true nor false")
        return value
    if isinstance(default, str):
        if value not in RESHAPES:
            raise Malformed(f"flags.{name} {value!r} is unknown; known: {', '.join(RESHAPES)}")
        return value
    optional = default is None or name == "off_cliprange"
    return None if value is None and optional else _float(f"flags.{name}", value)
