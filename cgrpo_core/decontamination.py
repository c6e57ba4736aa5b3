"""Whether problems that are trained on are also in a benchmark: the same question, or 13 words in a row in common.

Questions are compared in lower case without signs, spaces and drawing code, so that typesetting hides nothing. Words
are what stands between spaces. A question of fewer than 13 words has no 13-gram and is compared as a whole. 13 is the
length that GPT-3's authors chose (arXiv 2005.14165, appendix C); shorter runs are phrases of the trade, such as `in
triangle ABC the sides opposite to angles A, B and C`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cgrpo_core.problems import normalised_question
from cgrpo_core.records import Problem

NGRAM = 13
SIGNS = re.compile(r"[^\w]+|_")
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)  # labels of points are not words


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A problem that shares its question, or `words` in a row, with a problem of a benchmark."""

    problem_id: str
    benchmark_id: str
    kind: Literal["exact", "ngram"]
    words: str


def words_of(question: str) -> tuple[str, ...]:
    """Return the words of a question as they are compared."""
    text = DRAWING.sub(" ", normalised_question(question))
    return tuple(word for word in (SIGNS.sub("", piece) for piece in text.split()) if word)


def ngrams(words: tuple[str, ...], size: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """Yield each run of `size` words; none of a shorter question."""
    return (words[place : place + size] for place in range(len(words) - size + 1))


def overlaps(problems: Iterable[Problem], benchmark: Iterable[Problem], size: int = NGRAM) -> list[Overlap]:
    """Return at most one overlap of each problem with the benchmark, in the order of `problems`, exact before 13-gram.
    Questions without a letter or digit are not compared."""
    whole: dict[str, str] = {}
    runs: dict[tuple[str, ...], str] = {}
    for problem in benchmark:
        words = words_of(problem.question)
        whole.setdefault("".join(words), problem.problem_id)
        for run in ngrams(words, size):
            runs.setdefault(run, problem.problem_id)
    found = (_overlap(problem, whole, runs, size) for problem in problems)
    return [overlap for overlap in found if overlap is not None]


def _overlap(problem: Problem, whole: dict[str, str], runs: dict[tuple[str, ...], str], size: int) -> Overlap | None:
    words = words_of(problem.question)
    if not words:
        return None
    benchmark_id = whole.get("".join(words))
    if benchmark_id is not None:
        return Overlap(
            problem_id=problem.problem_id, benchmark_id=benchmark_id, kind="exact", words=" ".join(words[:size])
        )
    shared = next((run for run in ngrams(words, size) if run in runs), None)
    if shared is None:
        return None
    return Overlap(problem_id=problem.problem_id, benchmark_id=runs[shared], kind="ngram", words=" ".join(shared))
