"""What a user reads when a declaration does not fit: the file, the key path, the value, the nearest valid key."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
SHOWN = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known name nearest to `name`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def describe(error: ValidationError, model: type[BaseModel], where: str) -> tuple[str, str]:
    """Return message and hint for the first few errors of a validation."""
    lines, hints = [], []
    for item in error.errors(include_url=False, include_context=False)[:SHOWN]:
        path = ".".join(str(part) for part in item["loc"])
        value = _short(item["input"])
        if item["type"] in UNKNOWN:
            lines.append(f"{where}: unknown key {path} (value {value})")
            hints.append(f"{path}: {nearest(str(item['loc'][-1]), _known_keys(model, item['loc']))}")
        elif item["type"] == "value_error":  # of a block's own check, whose reason names the keys and their values
            lines.append(f"{where}: {path}: {str(item['msg']).removeprefix('Value error, ')}")
            block = path.removeprefix("params").removeprefix(".")
            hints.append(f"change it in the file, or with --set {block + '.' if block else ''}KEY=VALUE")
        else:
            lines.append(f"{where}: {path} = {value}: {item['msg']}")
            hints.append(f"{path}: {_expectation(item)}")
    more = error.error_count() - len(lines)
    if more > 0:
        lines.append(f"and {more} more")
    return "\n".join(lines), "; ".join(hints)


def _expectation(item: Any) -> str:
    return "add this key" if item["type"] == "missing" else str(item["msg"])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Follow `location` through the JSON schema of the model to the mapping that holds its last part."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    places = [schema]
    for part in location[:-1]:
        places = [found for place in places for found in _step(place, part, definitions)] or places
    keys = {key for place in places for option in _options(place, definitions) for key in option.get("properties", {})}
    return sorted(keys)


def _options(place: Any, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in place:
        return _options(definitions[place["$ref"].rsplit("/", 1)[1]], definitions)
    branches = place.get("oneOf") or place.get("anyOf") or place.get("allOf")
    return [found for branch in branches for found in _options(branch, definitions)] if branches else [place]


def _step(place: dict[str, Any], part: int | str, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for option in _options(place, definitions):
        if isinstance(part, int):
            found += [option["items"]] if "items" in option else []
        elif part in option.get("properties", {}):
            found.append(option["properties"][part])
        elif isinstance(option.get("additionalProperties"), dict):
            found.append(option["additionalProperties"])
        elif option.get("properties", {}).get("kind", {}).get("const") == part:
            found.append(option)  # the tag of a discriminated union stands in the location too
    return found
