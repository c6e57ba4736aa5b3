"""A row of a data set is a problem or is rejected with a reason; nothing in between, and no row is guessed at."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from cgrpo_core.ids import make_id
from cgrpo_core.records import Problem

ID_COLUMNS = ("id", "problem_id")
QUESTION_COLUMNS = ("problem", "question")
ANSWER_COLUMNS = ("answer", "ground_truth")

# What data sets for reasoning models put on the last line of the user's message. Our prompt templates bring their own
# instruction, so a problem is stored without one.
KNOWN_INSTRUCTION = re.compile(
    r"(please|let's)\b.*\b(reason|think)\b.*step by step.*\\boxed\s*\{\s*\}.*", re.IGNORECASE
)

Part = Literal["train", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A row that is no problem: its line (or row number), counted from 1, and the reason."""

    line: int
    reason: str


class _Reject(Exception):
    """Why the row at hand is no problem."""


def problem_from_row(row: Any, line: int, default_source: str) -> Problem | Rejection:
    """Return the problem that a row of a data set means.

    Two schemas: flat columns (id|problem_id, problem|question, answer|ground_truth, source, solution, level) and the
    one of the authors' release (data_source, prompt, reward_model {ground_truth, question}), told apart by
    `reward_model`. Numbers are accepted as ground truth and level, as their text. Without an id of its own a problem is
    called by a digest of source, question and ground truth.
    """
    try:
        if not isinstance(row, Mapping):
            raise _Reject(f"the row is {_kind(row)}, not an object with columns")
        return _official(row, default_source) if "reward_model" in row else _flat(row, default_source)
    except _Reject as reject:
        return Rejection(line=line, reason=str(reject))


def _flat(row: Mapping[str, Any], default_source: str) -> Problem:
    return _problem(
        problem_id=_optional("id", _first(row, ID_COLUMNS)),
        question=_text("question", _first(row, QUESTION_COLUMNS)),
        ground_truth=_text("answer", _first(row, ANSWER_COLUMNS), numbers=True),
        solution=_optional("solution", row.get("solution"), numbers=False),
        source=_optional("source", row.get("source"), numbers=False) or default_source,
        level=_optional("level", row.get("level")),
    )


def _official(row: Mapping[str, Any], default_source: str) -> Problem:
    """The index in extra_info restarts with each data source and repeated rows differ in it: it identifies nothing."""
    reward_model = row["reward_model"]
    if not isinstance(reward_model, Mapping):
        raise _Reject(f"reward_model is {_kind(reward_model)}, not an object")
    return _problem(
        problem_id=None,
        question=_text("question", _posed(row.get("prompt"), reward_model)),
        ground_truth=_text("answer", reward_model.get("ground_truth"), numbers=True),
        solution=None,
        source=_optional("data_source", row.get("data_source"), numbers=False) or default_source,
        level=None,
    )


def _posed(prompt: Any, reward_model: Mapping[str, Any]) -> Any:
    """Return the question of the last user message without the instruction line, else the reward model's copy."""
    if prompt is None or (isinstance(prompt, list) and not prompt):
        return reward_model.get("question")
    if not isinstance(prompt, list):
        return without_instruction(prompt) if isinstance(prompt, str) else prompt
    messages = [message for message in prompt if isinstance(message, Mapping) and message.get("role") == "user"]
    if not messages:
        raise _Reject("the prompt has no user message")
    content = messages[-1].get("content")
    return without_instruction(content) if isinstance(content, str) else content


def without_instruction(text: str) -> str:
    """Return `text` without its last line if that is an instruction to reason step by step and box the answer."""
    question, newline, last = text.rstrip().rpartition("\n")
    return question if newline and KNOWN_INSTRUCTION.fullmatch(last.strip()) else text


def _problem(*, problem_id: str | None, question: str, ground_truth: str, source: str, **rest: Any) -> Problem:
    return Problem(
        problem_id=problem_id or make_id("problem", source, question, ground_truth),
        question=question,
        ground_truth=ground_truth,
        source=source,
        **rest,
    )


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first of the columns that the row has with a value."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(name: str, value: Any, numbers: bool = False) -> str:
    """Return a column that must be there, as stripped text."""
    if value is None or _is_nan(value):
        raise _Reject(f"no {name}")
    if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _Reject(f"the {name} is {value}, not a number")
        return str(value)
    if not isinstance(value, str):
        raise _Reject(f"the {name} is {_kind(value)}, not {'text or a number' if numbers else 'text'}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _Reject(f"the {name} holds half a surrogate pair, which is no text")
    if not value.strip():
        raise _Reject(f"the {name} is blank")
    return value.strip()


def _optional(name: str, value: Any, numbers: bool = True) -> str | None:
    """Return a column that may be absent or blank."""
    absent = value is None or _is_nan(value) or (isinstance(value, str) and not value.strip())
    return None if absent else _text(name, value, numbers)


def _is_nan(value: Any) -> bool:
    """Columnar files write NaN for a missing value."""
    return isinstance(value, float) and math.isnan(value)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def distinct(rows: Iterable[tuple[int, Problem | Rejection]]) -> tuple[list[Problem], list[Rejection]]:
    """Part rows, each with its line, into problems and rejections; the second row of an id is rejected."""
    problems: list[Problem] = []
    rejected: list[Rejection] = []
    first_line: dict[str, int] = {}
    for line, row in rows:
        if isinstance(row, Rejection):
            rejected.append(row)
        elif row.problem_id in first_line:
            seen = first_line[row.problem_id]
            rejected.append(Rejection(line=line, reason=f"the problem {row.problem_id} is already at line {seen}"))
        else:
            first_line[row.problem_id] = line
            problems.append(row)
    return problems, rejected


def normalised_question(question: str) -> str:
    """Return the question as it is compared: Unicode NFKC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", question).lower().split())


def part_of(question: str, eval_share: float) -> Part:
    """Return the side of the train/eval split that a question is on: by its words alone, whatever the seed.

    The words are sorted first, so `3 + 5` and `5 + 3` are on the same side. Two declarations with the same `eval_share`
    and different parts can therefore never share a question.
    """
    words = " ".join(sorted(normalised_question(question).split()))
    place = int(hashlib.sha256(f"split 0 {words}".encode()).hexdigest()[:12], 16) / 16**12
    return "eval" if place < eval_share else "train"


def shared_questions(problems: Iterable[Problem], others: Iterable[Problem]) -> list[str]:
    """Return the ids of `problems` whose question, normalised, is also among `others`: contamination, if those are
    evaluated and these trained on."""
    known = {normalised_question(problem.question) for problem in others}
    return [problem.problem_id for problem in problems if normalised_question(problem.question) in known]
