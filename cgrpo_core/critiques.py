"""What a critique is asked of and how: the seam that every kind of critique fills, and the kinds that are there.

A kind is one file in critique_kinds/, named after it, that defines KIND. A rule writes the critique from the verdict
(paper, step 3: c_I, c_GT); a model is asked for it in messages (c_CoT, self-critique). Nothing else lists the kinds, so
another one is a file, its golden text and a preset (docs/critiques.md).
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from cgrpo_core.prompts import Message

KINDS = "critique_kinds"

RULE_BASED = "rule"  # the "model" of a critique that no model wrote
SUBSTITUTE = "indicative"  # the kind that may stand in for a model's critique, where a run declares it


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a critique is about: a problem, and one response to it as it is to be quoted."""

    question: str
    response_text: str
    correct: bool
    ground_truth: str
    solution: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the critique model is shown besides problem and response."""

    solution: bool
    ground_truth: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleKind:
    """A critique that follows from the verdict. `version`: raised together with its wording."""

    version: int
    write: Callable[[Subject], str]
    shows_ground_truth: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """A critique that a model writes. `may_show`: the fields of Shown that its messages can use.

    of_policy: the model is the policy itself, so it is asked of an engine that serves the policy.
    """

    version: int
    messages: Callable[[Subject, Shown], list[Message]]
    may_show: frozenset[str]
    of_policy: bool


@cache
def kind_names() -> tuple[str, ...]:
    """Return the kinds of critiques: the names of the files in critique_kinds/."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / KINDS)])))


def critique_kind(name: str) -> RuleKind | ModelKind:
    """Return a kind by name. Raises ValueError that lists the kinds for a name that is none."""
    if name not in kind_names():
        raise ValueError(f"kind must be one of {', '.join(kind_names())}, not {name!r}")
    kind: RuleKind | ModelKind = import_module(f"{__package__}.{KINDS}.{name}").KIND
    return kind
