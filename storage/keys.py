"""The key of a stage: a digest of everything its result depends on, known before anything has run.

Lineage keys, not output bytes: a whole run can be planned and priced in advance. Not among the ingredients: machines,
replicas, retries, paths, the run's name.
"""

from collections.abc import Mapping
from typing import Any

from cgrpo_core.ids import digest

KEY_SCHEME = 1


def stage_ingredients(
    *,
    stage: str,
    stage_version: int,
    record_schemas: Mapping[str, str],
    params: Mapping[str, Any],
    inputs: Mapping[str, list[str]],
    engine: Mapping[str, Any] | None,
    iteration: int | None,
    chunk: int | None,
    salt: str,
    seed: int,
) -> dict[str, Any]:
    """Return the ingredients of a stage key as plain JSON values.

    record_schemas: output name -> schema digest. inputs: argument -> list of "key/output" or leaf identities.
    engine: the options that change results (kind, dtype), not those of placement.
    """
    return {
        "scheme": KEY_SCHEME,
        "stage": stage,
        "stage_version": stage_version,
        "record_schemas": dict(record_schemas),
        "params": dict(params),
        "inputs": {name: list(refs) for name, refs in inputs.items()},
        "engine": None if engine is None else dict(engine),
        "iteration": iteration,
        "chunk": chunk,
        "salt": salt,
        "seed": seed,
    }


def stage_key(ingredients: Mapping[str, Any]) -> str:
    """Return the key (64 hex characters) of a stage with these ingredients."""
    return digest(dict(ingredients))
