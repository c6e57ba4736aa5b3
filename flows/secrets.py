"""Secrets do not belong into a declaration: what is declared is frozen with the run, stored and shown. Refused, unsaid.

A secret stays in the environment; a declaration names the variable (`api_key_env: OPENAI_API_KEY`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cgrpo_core.errors import UserError

# Whole last words of a key path: `max_response_tokens` is no secret, and `api_key_env` is the name of a variable.
_KEYS = re.compile(
    r"(?:.*_)?(?:api_?key|access_?key|private_?key|secret(?:_?key)?|password|passwd|passphrase|credentials?|"
    r"auth(?:orization)?|bearer|(?:auth|access|api|hf|github|refresh)_?token|token)",
    re.IGNORECASE,
)
_VALUES = re.compile(
    r"\b(?:sk|rk|pk)[-_](?:[a-z]+[-_])?[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|"
    r"\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bBearer\s+\S{16,}|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s@]+@"
)


class SecretInDeclaration(UserError):
    """A key or a value looks like a secret; the value is not repeated anywhere."""


def refuse_secrets(values: Mapping[str, Any], where: str) -> None:
    """Raise SecretInDeclaration, naming the key path and never the value, for what looks like a secret."""
    for path, value in _leaves(values, ()):
        named = path and _KEYS.fullmatch(path[-1]) and isinstance(value, str) and value
        if named or (isinstance(value, str) and _VALUES.search(value)):
            raise SecretInDeclaration(
                f"{where}: {_shown(path)} holds what looks like a secret; it would be stored with the run",
                "keep it in the environment, and name the variable: api_key_env: OPENAI_API_KEY",
            )


def _shown(path: tuple[str, ...]) -> str:
    return ".".join("..." if _VALUES.search(part) else part[:60] for part in path)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value with its path; keys are looked at as values too. A stack, as input may be nested without end."""
    waiting = [(path, value)]
    while waiting:
        at, one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [((*at, str(key)), item) for key, item in one.items()]
            waiting += [(at, key) for key in one if isinstance(key, str)]
        elif isinstance(one, list | tuple):
            waiting += [(at, item) for item in one]
        else:
            yield at, one
