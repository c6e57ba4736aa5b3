"""A row of a benchmark, in the form its authors publish, is a problem or is rejected with a reason.

Open questions keep their words. A multiple-choice question gets its options below it, lettered A to J, and its ground
truth is a letter. What is asked around the question, and how answers are judged, is declared beside the form, in the
catalogue of pipelines.yaml.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cgrpo_core.ids import digest
from cgrpo_core.problems import ANSWER_COLUMNS, QUESTION_COLUMNS, Rejection, problem_from_row
from cgrpo_core.records import Problem

Format = Literal["problem", "gsm8k", "options", "answers_apart", "theoremqa"]

LETTERS = "ABCDEFGHIJ"
FINAL_ANSWER = "####"  # GSM8K: the worked solution, this mark, the number
WHOLE_BOX = re.compile(r"\$*\s*\\boxed\s*\{(.*)\}\s*\$*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowForm:
    """How a benchmark writes its rows. columns: our name -> theirs, where they differ (question, answer, options, id,
    solution, level). wrong_columns: of `answers_apart`, the columns with the wrong answers."""

    name: str
    format: Format
    columns: Mapping[str, str] = field(default_factory=dict)
    wrong_columns: Sequence[str] = ()


class _Reject(Exception):
    """Why the row at hand is no problem."""


def benchmark_problem(row: Any, line: int, form: RowForm) -> Problem | Rejection:
    """Return the problem of a row. Its id begins with the benchmark's name, so that two benchmarks never share one.

    A row in the schema of the authors' release (`reward_model`) is read as such in every benchmark.
    """
    try:
        if not isinstance(row, Mapping):
            raise _Reject("the row is not an object with columns")
        if "reward_model" not in row:
            row = _FORMATS[form.format](_renamed(row, form.columns), form)
    except _Reject as reject:
        return Rejection(line=line, reason=str(reject))
    found = problem_from_row(row, line, form.name)
    if isinstance(found, Rejection):
        return found
    return replace(found, problem_id=f"{form.name}/{found.problem_id}")


def chosen(problems: Sequence[Problem], limit: int | None) -> list[Problem]:
    """Return at most `limit` problems in their order: those whose ids have the lowest digests, so no part of the file
    is preferred."""
    if limit is None or len(problems) <= limit:
        return list(problems)
    kept = {problem.problem_id for problem in sorted(problems, key=lambda one: digest(one.problem_id))[:limit]}
    return [problem for problem in problems if problem.problem_id in kept]


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question with its options below it, a letter and a line each."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.rstrip(), "", *lines])


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A file that already uses our names, as a copy by hand may, is read as it is."""
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if row.get(theirs) is not None}}


def _problem(row: dict[str, Any], _form: RowForm) -> dict[str, Any]:
    answer = _first(row, ANSWER_COLUMNS)
    if isinstance(answer, list | tuple) and answer and all(isinstance(part, str) for part in answer):
        answer = ", ".join(part.strip() for part in answer)
    if isinstance(answer, str) and (box := WHOLE_BOX.fullmatch(answer.strip())):
        answer = box.group(1)
    return _flat(row, _first(row, QUESTION_COLUMNS), answer)


def _gsm8k(row: dict[str, Any], form: RowForm) -> dict[str, Any]:
    answer = _first(row, ANSWER_COLUMNS)
    if not isinstance(answer, str) or FINAL_ANSWER not in answer:
        return _problem(row, form)
    solution, _, final = answer.rpartition(FINAL_ANSWER)
    number = final.strip().replace(",", "")
    return {**_flat(row, _first(row, QUESTION_COLUMNS), number), "solution": row.get("solution") or solution}


def _options(row: dict[str, Any], _form: RowForm) -> dict[str, Any]:
    options = _texts("options", row.get("options"))
    answer = _first(row, ANSWER_COLUMNS)
    place = LETTERS.find(answer.strip()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(options):
        raise _Reject(f"the answer {answer!r} names none of the {len(options)} options")
    return _flat(row, _lettered(row, options), LETTERS[place])


def _answers_apart(row: dict[str, Any], form: RowForm) -> dict[str, Any]:
    """The right answer gets its place from a digest of question and options: the same in every file and run."""
    right, *wrong = _texts("answers", [_first(row, ANSWER_COLUMNS), *(row.get(name) for name in form.wrong_columns)])
    if right in wrong:
        raise _Reject("the right answer is also among the wrong ones")
    question = str(_first(row, QUESTION_COLUMNS))
    options = sorted([right, *wrong], key=lambda option: digest(["option", question, option]))
    return _flat(row, _lettered(row, options), LETTERS[options.index(right)])


def _theoremqa(row: dict[str, Any], form: RowForm) -> dict[str, Any]:
    if row.get("Picture"):
        raise _Reject("the question needs its picture")
    return _problem(row, form)


_FORMATS = {
    "problem": _problem,
    "gsm8k": _gsm8k,
    "options": _options,
    "answers_apart": _answers_apart,
    "theoremqa": _theoremqa,
}


def _flat(row: Mapping[str, Any], question: Any, answer: Any) -> dict[str, Any]:
    kept = {name: row.get(name) for name in ("id", "problem_id", "solution", "level")}
    return {**kept, "question": question, "answer": answer}


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list | tuple) or not 2 <= len(values) <= len(LETTERS):
        raise _Reject(f"the {name} are not a list of 2 to {len(LETTERS)} texts")
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise _Reject(f"one of the {name} is blank or no text")
    return [" ".join(value.split()) for value in values]


def _lettered(row: Mapping[str, Any], options: Sequence[str]) -> Any:
    question = _first(row, QUESTION_COLUMNS)
    return with_options(question, options) if isinstance(question, str) and question.strip() else None
