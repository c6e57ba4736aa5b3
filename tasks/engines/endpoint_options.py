"""The declaration of a critique model behind an OpenAI-compatible API, read and checked. Nothing here imports openai.

The key itself is never here: `api_key_env` names the environment variable that holds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from cgrpo_core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """How a model behind an API is asked. Only `model` and `request` change what comes back, so only they are in keys.

    api_key_env: the environment variable with the key, null for a server that wants none. concurrency: requests at once
    of one chunk. timeout_s: without a byte from the server. max_retries: by the client, with back-off and Retry-After.
    deadline_s: one request with all of its retries. give_up_after: so many requests in a row without an answer, and the
    rest are not sent. request: more fields of the request's body, as `{reasoning_effort: low}`.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    concurrency: int = 16
    timeout_s: float = 60.0
    max_retries: int = 4
    deadline_s: float = 600.0
    give_up_after: int = 32
    request: dict[str, Any] = field(default_factory=dict)


def read_endpoint(declaration: Mapping[str, Any]) -> EndpointOptions:
    """Return the options of an engine of kind openai. Raises UserError that names the key path for what cannot be."""
    where = f"engines.{declaration.get('name', 'critiquer')}.options"
    given = dict(declaration.get("options") or {})
    known = {item.name for item in fields(EndpointOptions)}
    if unknown := sorted(set(given) - known):
        raise UserError(f"{where} has no {unknown[0]!r}", f"it has {', '.join(sorted(known))}")
    if not isinstance(given.get("model"), str) or not given["model"]:
        raise UserError(f"{where}.model is {given.get('model')!r}", "name the model as its server does")
    options = EndpointOptions(**given)
    _check_url(where, options.base_url)
    variable = options.api_key_env
    if variable is not None and (not isinstance(variable, str) or not variable.isidentifier()):
        raise UserError(  # not shown: who puts the key itself here must not find it in a log
            f"{where}.api_key_env is not the name of an environment variable",
            "write the name of the variable that holds the key, never the key",
        )
    for name, minimum in (("concurrency", 1), ("max_retries", 0), ("give_up_after", 1)):
        value = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise UserError(f"{where}.{name} is {value!r}", f"it is a whole number of {minimum} or more")
    for name in ("timeout_s", "deadline_s"):
        if not isinstance(value := getattr(options, name), int | float) or not 0 < value < 1e6:
            raise UserError(f"{where}.{name} is {value!r}", "it is a number of seconds above 0")
    if not isinstance(options.request, dict):
        raise UserError(f"{where}.request is {options.request!r}", "it is a mapping, as {reasoning_effort: low}")
    return options


def _check_url(where: str, url: Any) -> None:
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{where}.base_url is no http address", "write it as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(  # not shown, for the same reason
            f"{where}.base_url holds a user name, a password or a query, which would be stored with the run",
            "give the key by api_key_env",
        )
