"""Files of problems, compared with files of benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cgrpo_core.decontamination import Overlap, overlaps
from tasks.problems import Loaded, load
from tasks.sources import hub_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a file of problems shares with one file of a benchmark."""

    file: str
    problems: int
    rejected: int
    overlaps: Sequence[Overlap]

    def count(self, kind: str) -> int:
        """Return how many problems overlap in this way."""
        return sum(overlap.kind == kind for overlap in self.overlaps)


def problems_of(path: Path) -> Loaded:
    """Return the problems of a .jsonl or .parquet file, in any schema that a run reads. Raises UserError."""
    return load({"kind": hub_kind(path.name), "path": str(path)}, Path())


def compare(train: Loaded, benchmarks: Sequence[Path]) -> list[Comparison]:
    """Return what the problems of `train` share with each benchmark."""
    found = []
    for path in benchmarks:
        benchmark = problems_of(path)
        found.append(
            Comparison(
                file=str(path),
                problems=len(benchmark.problems),
                rejected=len(benchmark.rejected),
                overlaps=overlaps(train.problems, benchmark.problems),
            )
        )
    return found
