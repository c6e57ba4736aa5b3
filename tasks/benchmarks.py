"""Benchmarks of the catalogue: what one is known by in stage keys, and the problems that it means."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgrpo_core.benchmarks import RowForm, benchmark_problem, chosen
from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from cgrpo_core.problems import Rejection, distinct
from tasks.problems import DatasetEmpty, Loaded, rows_of
from tasks.problems import identity as problems_identity

READING = ("name", "format", "columns", "wrong_columns", "data_source", "limit")  # what decides which problems come out


def benchmark_identity(declaration: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """Return what a benchmark is known by: the content or pinned revision of its file, and how it is read.

    Title, licence, template, verifier and shards are not in it: they enter keys where they matter, or not at all.
    Raises UserError for a missing file or an unpinned revision.
    """
    known_by = {name: declaration[name] for name in READING}
    known_by["source"] = problems_identity(declaration["source"], base_dir)["digest"]
    return {**known_by, "digest": digest(known_by)}


def load_benchmark_problems(declaration: Mapping[str, Any], base_dir: Path) -> Loaded:
    """Return the problems of a benchmark, with every row that was rejected.

    A file of several data sets (the authors' validation file) has a column data_source: rows of another one than the
    benchmark's are counted as `of_other_data_sources`. Raises DatasetEmpty.
    """
    rows, _, name = rows_of(declaration["source"], base_dir)
    form = RowForm(**{key: declaration[key] for key in ("name", "format", "columns", "wrong_columns")})
    found: list[tuple[int, Any]] = []
    others: set[str] = set()
    skipped = 0
    for row in rows:
        if isinstance(row, Rejection):
            found.append((row.line, row))
        elif _is_of(row[1], declaration["data_source"]):
            found.append((row[0], benchmark_problem(row[1], row[0], form)))
        else:
            skipped += 1
            others.add(str(row[1]["data_source"]))
    problems, rejected = distinct(found)
    if not problems:
        raise _empty(name, rejected, declaration, others)
    kept = chosen(problems, declaration["limit"])
    counts = {"of_other_data_sources": skipped, "beyond_limit": len(problems) - len(kept)}
    return Loaded(problems=kept, rejected=rejected, counts={name: count for name, count in counts.items() if count})


def _is_of(row: Any, data_source: str | None) -> bool:
    if data_source is None or not isinstance(row, Mapping) or row.get("data_source") is None:
        return True
    return bool(row["data_source"] == data_source)


def _empty(name: str, rejected: list[Rejection], declaration: Mapping[str, Any], others: set[str]) -> UserError:
    benchmark = declaration["name"]
    if others and not rejected:
        return DatasetEmpty(
            f"{name} has no row whose data_source is {declaration['data_source']!r}",
            f"it has {', '.join(sorted(others)[:10])}; --set benchmarks.{benchmark}.data_source=ONE_OF_THEM",
        )
    reason = f"; the first of {len(rejected)} rejected rows: {rejected[0].reason}" if rejected else ""
    return DatasetEmpty(
        f"{name} has no usable problem for the benchmark {benchmark}{reason}",
        f"its rows are read as {declaration['format']!r}; see format and columns in the catalogue",
    )
