"""What a benchmark says of a policy: pass@1, avg@k, pass@k and maj@k, each with a bootstrap interval over problems.

A sample that was not judged (the verifier timed out or failed) is neither right nor wrong: it leaves the sample, and is
counted. So n, the judged samples, may differ between problems; a figure at k is over the problems with n >= k, and says
over how many.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cgrpo_core.ids import derive_seed
from cgrpo_core.metrics import mean, pass_at_k
from cgrpo_core.records import BenchmarkFigure, EvalResult
from cgrpo_core.sampling_params import MAX_SAMPLES

RESAMPLES = 2000
CONFIDENCE = 0.95

Votes = tuple[int, tuple[int, ...], int]  # samples that are correct, with each wrong answer, and without any answer


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over problems, and where it lies in `CONFIDENCE` of the resamples; no bounds with fewer than two."""

    value: float
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What figures are of: a benchmark, a policy, and how it was asked."""

    benchmark: str
    policy_version: int
    template: str
    temperature: float
    samples_per_problem: int


def judged(result: EvalResult) -> bool:
    """Return whether the verifier reached a verdict."""
    return result.status in ("ok", "unparsable")


def accuracy(results: Iterable[EvalResult]) -> float | None:
    """Return the share of correct samples among those judged, or None if there is none."""
    return mean(float(result.correct) for result in results if judged(result))


def votes(results: Iterable[EvalResult]) -> Votes:
    """Return how the judged samples of one problem vote.

    All correct ones vote for the same answer, whatever its spelling, since the verifier holds each equal to the ground
    truth. Wrong ones vote by their text, without white space and case. A sample without an answer does not vote.
    """
    correct = silent = 0
    wrong: Counter[str] = Counter()
    for result in filter(judged, results):
        text = "".join((result.answer or "").split()).casefold()
        if result.correct:
            correct += 1
        elif text:
            wrong[text] += 1
        else:
            silent += 1
    return correct, tuple(sorted(wrong.values(), reverse=True)), silent


def maj_at_k(ballot: Votes, k: int) -> float:
    """Return the chance that the correct answer has the most votes among k of the samples, drawn without replacement.

    Exact over all subsets. A tie for the most votes is broken by a fair draw: with m answers tied, the correct one wins
    1/m of the time. Raises ValueError unless 1 <= k <= samples <= MAX_SAMPLES.
    """
    correct, wrong, silent = ballot
    samples = correct + sum(wrong) + silent
    if not 1 <= k <= samples or samples > MAX_SAMPLES:
        raise ValueError(f"maj@{k} of {samples} samples is not defined (at most {MAX_SAMPLES} samples)")
    won = 0.0
    for mine in range(1, min(correct, k) + 1):
        won += math.comb(correct, mine) * _others(wrong, silent, k - mine, mine)
    return min(1.0, won / math.comb(samples, k))


def _others(wrong: Sequence[int], silent: int, drawn: int, mine: int) -> float:
    """Sum, over the ways to draw `drawn` other samples with at most `mine` votes for any one wrong answer, of
    1 / (1 + the number of wrong answers with exactly `mine`)."""
    ties = drawn // mine
    ways = np.zeros((drawn + 1, ties + 1))  # [votes drawn so far, wrong answers that tie so far]
    ways[: min(silent, drawn) + 1, 0] = [math.comb(silent, count) for count in range(min(silent, drawn) + 1)]
    for size in wrong:
        following = np.zeros_like(ways)
        for count in range(min(size, mine - 1, drawn) + 1):
            following[count:] += math.comb(size, count) * ways[: drawn + 1 - count]
        if mine <= min(size, drawn):
            following[mine:, 1:] += math.comb(size, mine) * ways[: drawn + 1 - mine, :-1]
        ways = following
    return float((ways[drawn] / np.arange(1, ties + 2)).sum())


def bootstrap(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the mean of one value a problem with its percentile interval, resampling problems with replacement.

    The same seed and number of problems give the same resamples, so intervals of two policies vary together.
    Raises ValueError for no value.
    """
    if not values:
        raise ValueError("there is no problem to average over")
    center = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(center, None, None, len(values))
    draw, data = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [float(data[draw.integers(len(data), size=len(data))].mean()) for _ in range(resamples)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(center, float(low), float(high), len(values))


def powers(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to `samples`, and `samples` itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples}) if samples else []


def summarise(results: Sequence[EvalResult], measured: Measured, *, problems: int, seed: int) -> list[BenchmarkFigure]:
    """Return the figures of one benchmark, one policy and one way of sampling.

    problems: how many the benchmark has; those without a sample (a prompt too long) are counted as `unanswered`.
    Without any sample that count is all there is.
    """
    by_problem: dict[str, list[EvalResult]] = {}
    for result in results:
        by_problem.setdefault(result.problem_id, []).append(result)
    figures = {"unanswered": _plain(problems - len(by_problem), problems)}
    if by_problem:
        draw = derive_seed(seed, "bootstrap", measured.benchmark)
        figures = _chances(by_problem, measured.samples_per_problem, draw) | _lengths(by_problem) | figures
    return [
        BenchmarkFigure(
            figure_id=f"{measured.benchmark}/{measured.policy_version}/{measured.temperature:g}/{metric}",
            benchmark=measured.benchmark,
            policy_version=measured.policy_version,
            template=measured.template,
            temperature=measured.temperature,
            samples_per_problem=measured.samples_per_problem,
            metric=metric,
            value=figure.value,
            low=figure.low,
            high=figure.high,
            problems=figure.problems,
        )
        for metric, figure in figures.items()
    ]


def _plain(value: float, problems: int) -> Interval:
    return Interval(float(value), None, None, problems)


def _lengths(by_problem: Mapping[str, Sequence[EvalResult]]) -> dict[str, Interval]:
    rows, problems = [row for group in by_problem.values() for row in group], len(by_problem)
    truncated = sum(row.finish_reason == "length" for row in rows)
    return {
        "mean_tokens": _plain(math.fsum(row.tokens for row in rows) / len(rows), problems),
        "truncated": _plain(truncated / len(rows), problems),
        "unjudged": _plain(sum(not judged(row) for row in rows), problems),
    }


def _chances(by_problem: Mapping[str, Sequence[EvalResult]], samples: int, seed: int) -> dict[str, Interval]:
    ballots = [votes(group) for group in by_problem.values()]
    counts = [(correct + sum(wrong) + silent, correct) for correct, wrong, silent in ballots]
    values = {f"avg@{samples}" if samples > 1 else "pass@1": [c / n for n, c in counts if n]}
    for k in powers(samples) if samples > 1 else []:
        values[f"pass@{k}"] = [pass_at_k(n, c, k) for n, c in counts if n >= k]
        values[f"maj@{k}"] = [maj_at_k(ballot, k) for ballot, (n, _) in zip(ballots, counts, strict=True) if n >= k]
    return {metric: bootstrap(found, seed) for metric, found in values.items() if found}
