"""Identifiers and seeds, both from sha256 of what they belong to, so that no counter or clock can shift them."""

import hashlib
import json


def canonical_json(value: object) -> str:
    """Return the one JSON text of `value`: keys sorted, no spaces, no NaN. Raises TypeError or ValueError otherwise."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """Return the sha256 (64 hex characters) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def make_id(prefix: str, *parts: str | int) -> str:
    """Return `prefix-` and 20 hex characters (80 bits) of the digest of `parts`."""
    return f"{prefix}-{digest(list(parts))[:20]}"


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2**31) from `parts`; vLLM and numpy take it as it is."""
    return int(digest(["seed", *parts])[:8], 16) & 0x7FFF_FFFF
