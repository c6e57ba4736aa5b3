"""What parameter blocks check of their values, beyond the types."""

import math
from typing import Any

FORBID: dict[str, Any] = {"extra": "forbid"}  # pydantic: an unknown key is an error


def at_least(block: object, minimum: float, *names: str) -> None:
    """Raise ValueError unless each named field of `block` is finite and at least `minimum`."""
    for name in names:
        value = getattr(block, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} must be at least {minimum:g}, not {value}")


def fraction(block: object, *names: str) -> None:
    """Raise ValueError unless each named field of `block` is in (0, 1]."""
    for name in names:
        value = getattr(block, name)
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value}")
