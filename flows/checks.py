"""What the commands of cli_check.py print."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.params import VerifyParams
from cgrpo_core.records import Verdict
from flows.terminal import dump_json, say
from tasks.decontamination import Comparison, compare, problems_of
from tasks.verifier_cases import Agreement, KnownCase, agreement, read_cases

SHOWN_CHARACTERS = 160


def check_verifier(path: Path, *, core: bool, workers: int, as_json: bool) -> None:
    """Print each disagreement, and last the agreement and the cases per CPU-second of the workers."""
    known = read_cases(path, core)
    found = agreement(known, VerifyParams(workers=workers))
    different = found.disagreements()
    if as_json:
        dump_json(_as_values(found, different))
        return
    for case, verdict in different:
        print(_line(case, verdict))
    total, agreed = len(known), len(known) - len(different)
    faults = {status: count for status, count in _statuses(found).items() if status in ("timeout", "error")}
    if faults:
        say(", ".join(f"{count} {status}" for status, count in faults.items()))
    print(f"agreement {agreed / total:.3f} ({agreed} of {total}), {_rate(found):.0f} cases/s")


def _as_values(found: Agreement, different: list[tuple[KnownCase, Verdict]]) -> dict[str, Any]:
    total, agreed = len(found.cases), len(found.cases) - len(different)
    return {
        "agreement": agreed / total,
        "agreed": agreed,
        "cases": total,
        "cpu_seconds": found.cpu_seconds,
        "cases_per_cpu_second": _rate(found),
        "statuses": _statuses(found),
        "disagreements": [
            {
                "id": known.case.subject_id,
                "gold": known.case.ground_truth,
                "pred": known.case.text,
                "expected": known.expected,
                "correct": verdict.correct,
                "status": verdict.status,
                "answer": verdict.answer,
            }
            for known, verdict in different
        ],
    }


def _statuses(found: Agreement) -> dict[str, int]:
    return dict(Counter(verdict.status for verdict in found.verdicts))


def _rate(found: Agreement) -> float:
    return len(found.cases) / max(found.cpu_seconds, 1e-9)


def _line(known: KnownCase, verdict: Verdict) -> str:
    said = "correct" if verdict.correct else f"wrong ({verdict.status})"
    expected = "correct" if known.expected else "wrong"
    texts = (_short(known.case.ground_truth), _short(known.case.text), _short(verdict.answer or ""))
    return "{}: {}, expected {}; gold {!r}, pred {!r}, answer {!r}".format(
        known.case.subject_id, said, expected, *texts
    )


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else "..." + text[-SHOWN_CHARACTERS:]


def check_overlap(train: Path, benchmarks: list[Path], *, as_json: bool) -> None:
    """Print the ids of the problems that a benchmark has too, and how many there are of each kind."""
    if not benchmarks:
        raise UserError("no benchmark to compare with", "cgrpo decontaminate train.jsonl --against bench.jsonl")
    loaded = problems_of(train)
    found = compare(loaded, benchmarks)
    shared = sorted({overlap.problem_id for comparison in found for overlap in comparison.overlaps})
    if as_json:
        dump_json(
            {
                "train": str(train),
                "problems": len(loaded.problems),
                "rejected": len(loaded.rejected),
                "shared": shared,
                "against": [_comparison_values(comparison) for comparison in found],
            }
        )
        return
    for comparison in found:
        for overlap in comparison.overlaps:
            print(f"{overlap.problem_id}  {overlap.kind}  {overlap.benchmark_id}  {comparison.file}")
    for comparison in found:
        exact, runs = comparison.count("exact"), comparison.count("ngram")
        print(f"{comparison.file}: {exact} exact, {runs} by 13-gram, of {comparison.problems} problems")
    print(f"{len(shared)} of {len(loaded.problems)} problems are in a benchmark too")
    if loaded.rejected:
        say(f"{len(loaded.rejected)} rows of {train} are no problems and were not compared")


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    return {
        "file": comparison.file,
        "problems": comparison.problems,
        "rejected": comparison.rejected,
        "exact": comparison.count("exact"),
        "ngram": comparison.count("ngram"),
        "overlaps": [asdict(overlap) for overlap in comparison.overlaps],
    }
