"""A file of cases with known verdicts, judged as responses are: how far the verifier agrees with people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.params import VerifyParams
from cgrpo_core.records import Verdict
from tasks.verifier_pool import Case, VerifierPool

NEEDED = "each line is an object with `gold` (text), `pred` (text) and `expected` (true or false)"


class CasesInvalid(UserError):
    """A file of cases is missing, or has a row that is no case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCase:
    """A case with the verdict that it should get. `core`: not a matter of policy or noise."""

    case: Case
    expected: bool
    core: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The cases and their verdicts, and the CPU seconds that the workers spent on them."""

    cases: Sequence[KnownCase]
    verdicts: Sequence[Verdict]
    cpu_seconds: float

    def disagreements(self) -> list[tuple[KnownCase, Verdict]]:
        """Return the cases whose verdict is not the expected one."""
        pairs = zip(self.cases, self.verdicts, strict=True)
        return [(known, verdict) for known, verdict in pairs if verdict.correct != known.expected]


def read_cases(path: Path, core: bool = False) -> list[KnownCase]:
    """Return the cases of a JSON Lines file, or only its core rows. Raises CasesInvalid, which names the line."""
    if not path.is_file():
        raise CasesInvalid(f"no file of cases at {path}", NEEDED)
    known = [case for case in _known_cases(path) if case.core or not core]
    if not known:
        raise CasesInvalid(f"{path} has no {'core ' if core else ''}case", NEEDED)
    return known


def _known_cases(path: Path) -> Iterator[KnownCase]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as fault:
                raise CasesInvalid(f"{path}, line {line}: not JSON: {fault}", NEEDED) from None
            yield _known_case(row, path, line)


def _known_case(row: Any, path: Path, line: int) -> KnownCase:
    if not isinstance(row, Mapping):
        raise CasesInvalid(f"{path}, line {line}: not an object", NEEDED)
    for name, kind in (("gold", str), ("pred", str), ("expected", bool)):
        if not isinstance(row.get(name), kind):
            raise CasesInvalid(f"{path}, line {line}: {name} is {json.dumps(row.get(name))}", NEEDED)
    case = Case(
        subject_id=str(row.get("id", f"line-{line}")),
        text=row["pred"],
        ground_truth=row["gold"],
        question=row.get("question"),
        source=row.get("source"),
    )
    return KnownCase(case=case, expected=row["expected"], core=bool(row.get("core", True)))


def agreement(cases: Sequence[KnownCase], params: VerifyParams) -> Agreement:
    """Judge the cases in `params.workers` processes of their own."""
    pool = VerifierPool(params.workers)
    try:
        pending = [pool.submit(known.case, replace(params, workers=1)) for known in cases]
        verdicts = [verdict.result() for verdict in pending]
    finally:
        pool.close()
    return Agreement(cases=cases, verdicts=verdicts, cpu_seconds=sum(verdict.elapsed_ms for verdict in verdicts) / 1e3)
