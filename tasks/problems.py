"""Problem sets: what a declaration in pipelines.yaml is known by, and the problems that it means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.ids import digest
from cgrpo_core.problems import Rejection, distinct, problem_from_row
from cgrpo_core.records import Problem
from tasks.gym import gym_rows, gym_version
from tasks.sources import data_path, file_sha256, hub_file, hub_kind, pinned, rows_of_file


class DatasetEmpty(UserError):
    """A data set has no usable row."""


class SplitInvalid(UserError):
    """A `split` without a part, or with a share that is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Problems with distinct ids in the order of the source; rejected rows; and what a procedural source passed over
    (`repeated` questions and those `in_other_part` of the split)."""

    problems: list[Problem]
    rejected: list[Rejection]
    counts: dict[str, int] = field(default_factory=dict)


def identity(declaration: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """Return what a data set is known by in stage keys: content, pinned revision or generator with version; no path.
    Its `digest` is of the rest.

    Reads at most the bytes of local files. Raises UserError for a missing file, an unpinned revision or a bad split.
    """
    known_by = _known_by(declaration, base_dir)
    return {**known_by, "digest": digest(known_by)}


def _known_by(declaration: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    match declaration["kind"]:
        case "reasoning_gym":
            _check_split(declaration.get("split"))
            named = {name: declaration.get(name) for name in ("kind", "task", "size", "seed", "options", "split")}
            return {**named, "options": named["options"] or {}, "generator": gym_version()}
        case "jsonl" | "parquet" | "csv":
            return {"kind": declaration["kind"], "sha256": file_sha256(data_path(declaration, base_dir))}
        case "hf_dataset":
            hub_kind(declaration["file"])
            return {
                "kind": "hf_dataset",
                "repo": declaration["repo"],
                "revision": pinned(declaration),
                "file": declaration["file"],
            }
        case "mixture":
            return {"kind": "mixture", "parts": [_known_by(part, base_dir) for part in declaration["parts"]]}
    raise _unknown(declaration)


def load(declaration: Mapping[str, Any], base_dir: Path) -> Loaded:
    """Return the problems of a declaration, with every row that was rejected.

    A mixture is its parts one after the other; a problem that occurs in two parts is rejected in the second, and the
    reason of each rejection names the part. Raises DatasetEmpty, or what `identity` raises.
    """
    if declaration["kind"] == "mixture":
        return _load_mixture(declaration, base_dir)
    rows, counts, name = rows_of(declaration, base_dir)
    source = str(declaration["kind"]) if declaration["kind"] == "reasoning_gym" else Path(name).stem
    found = (_parsed(row, source) for row in rows)
    problems, rejected = distinct(found)
    if not problems:
        reason = f"; the first of {len(rejected)} rejected rows: {rejected[0].reason}" if rejected else ""
        raise DatasetEmpty(f"{name} has no usable problem{reason}", "each row needs a question and an answer")
    return Loaded(problems=problems, rejected=rejected, counts=counts)


def _parsed(row: tuple[int, Any] | Rejection, source: str) -> tuple[int, Problem | Rejection]:
    if isinstance(row, Rejection):
        return row.line, row
    line, value = row
    return line, problem_from_row(value, line, source)


def rows_of(
    declaration: Mapping[str, Any], base_dir: Path
) -> tuple[Iterator[tuple[int, Any] | Rejection], dict[str, int], str]:
    """Return rows with their lines, counts, and the name of the source in messages."""
    match declaration["kind"]:
        case "reasoning_gym":
            _check_split(declaration.get("split"))
            rows, counts = gym_rows(declaration)
            return iter(enumerate(rows, start=1)), counts, f"reasoning-gym task {declaration['task']}"
        case "jsonl" | "parquet" | "csv":
            path = data_path(declaration, base_dir)
            return rows_of_file(path, declaration["kind"]), {}, str(path)
        case "hf_dataset":
            kind = hub_kind(declaration["file"])
            name = f"{declaration['repo']}/{declaration['file']}"
            return rows_of_file(hub_file(declaration), kind), {}, name
    raise _unknown(declaration)


def _load_mixture(declaration: Mapping[str, Any], base_dir: Path) -> Loaded:
    problems: list[Problem] = []
    rejected: list[Rejection] = []
    counts: dict[str, int] = {}
    part_by_id: dict[str, int] = {}
    for number, part in enumerate(declaration["parts"], start=1):
        loaded = load(part, base_dir)
        for row in loaded.rejected:
            rejected.append(Rejection(line=row.line, reason=f"part {number}: {row.reason}"))
        for place, problem in enumerate(loaded.problems, start=1):
            first = part_by_id.setdefault(problem.problem_id, number)
            if first == number:
                problems.append(problem)
            else:
                reason = f"part {number}: the problem {problem.problem_id} is already in part {first}"
                rejected.append(Rejection(line=place, reason=reason))
        for name, count in loaded.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Loaded(problems=problems, rejected=rejected, counts=counts)


def _check_split(split: Mapping[str, Any] | None) -> None:
    if split is None:
        return
    share = split.get("eval_share")
    fits = isinstance(share, int | float) and not isinstance(share, bool) and 0 < share < 1
    if set(split) != {"part", "eval_share"} or split["part"] not in ("train", "eval") or not fits:
        raise SplitInvalid(
            f"split is {dict(split)}",
            "write `split: {part: train, eval_share: 0.25}` for training and the same with `part: eval` for evaluation",
        )


def _unknown(declaration: Mapping[str, Any]) -> UserError:
    return UserError(
        f"a data set of kind {declaration['kind']} is not known",
        "kinds: reasoning_gym, jsonl, parquet, csv, hf_dataset, mixture",
    )
