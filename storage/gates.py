"""What the gates of a run found after each iteration, beside its plan: one JSON file an iteration.

    home/runs/<run>/gates/<iteration>.json

Not an artifact: limits are not in stage keys, and two runs that share an iteration may hold it to different ones.
"""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from storage.attempts import run_corrupt, run_directory
from storage.durable import json_bytes
from storage.journal import write_recorded

GateStatus = Literal["ok", "warn", "fail", "not_measured"]

# Columns of the view `gates`.
COLUMNS: dict[str, type] = {
    **{"run": str, "iteration": int, "gate": str, "status": str, "value": float, "must_be": str, "bound": float},
    **{"accepted": bool, "query": str, "next": str},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate in one iteration: `value` was to be `must_be` (<=, ==, ...) `bound`. accepted: a person let it pass."""

    gate: str
    iteration: int
    status: GateStatus
    value: float | None
    must_be: str
    bound: float
    query: str
    next: str
    accepted: bool = False


def write_gates(home: Path, run: str, iteration: int, results: list[GateResult]) -> None:
    """Keep what the gates found in an iteration, in the place of what was found before."""
    content = json_bytes([asdict(result) for result in results])
    write_recorded(run_directory(home, run), f"gates/{iteration}.json", content)


def read_gates(home: Path, run: str, iteration: int) -> list[GateResult] | None:
    """Return what was found in an iteration, or None if it was not checked yet. Raises RunCorrupt."""
    path = _directory(home, run) / f"{iteration}.json"
    try:
        return [GateResult(**row) for row in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise run_corrupt(path, error) from error


def accept_gates(home: Path, run: str, names: Collection[str]) -> int:
    """Let failed gates of these names pass, in every iteration that was checked; return how many did."""
    accepted = 0
    for path in sorted(_directory(home, run).glob("*.json")):
        results = read_gates(home, run, int(path.stem)) or []
        changed = [
            replace(one, accepted=True) if one.gate in names and one.status == "fail" else one for one in results
        ]
        accepted += sum(new.accepted and not old.accepted for new, old in zip(changed, results, strict=True))
        write_gates(home, run, int(path.stem), changed)
    return accepted


def list_gates(home: Path, run: str) -> list[dict[str, Any]]:
    """Return the rows of the view `gates` for a run."""
    iterations = sorted(int(path.stem) for path in _directory(home, run).glob("*.json"))
    found = [result for iteration in iterations for result in read_gates(home, run, iteration) or []]
    # Not asdict, which copies each value: a long run has thousands.
    return [{"run": run, **{name: getattr(one, name) for name in COLUMNS if name != "run"}} for one in found]


def _directory(home: Path, run: str) -> Path:
    return run_directory(home, run) / "gates"
