"""Rows of data files: JSON Lines, Parquet or CSV, by path or as one file of a hub data set at a pinned revision."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from cgrpo_core.errors import UserError
from cgrpo_core.problems import Rejection

Row = tuple[int, Any]
COMMIT = re.compile(r"[0-9a-f]{40}")


class DatasetMissing(UserError):
    """A data file is not there or cannot be had."""


class DatasetUnreadable(UserError):
    """A data file is not of the declared kind."""


class RevisionNotPinned(UserError):
    """A hub declaration names a branch or tag, which may move, instead of a commit."""


def data_path(declaration: Mapping[str, Any], base_dir: Path) -> Path:
    """Return the file of a declaration with `path`, relative to base_dir. Raises DatasetMissing."""
    path = base_dir / Path(declaration["path"]).expanduser()
    if not path.is_file():
        raise DatasetMissing(
            f"no data file at {path}", f"`path: {declaration['path']}` is taken relative to {base_dir.resolve()}"
        )
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned(declaration: Mapping[str, Any]) -> str:
    """Return the revision of a hub declaration. Raises RevisionNotPinned unless it is a full commit."""
    revision = str(declaration["revision"])
    if not COMMIT.fullmatch(revision):
        raise RevisionNotPinned(
            f"revision {revision} of {declaration['repo']} is not a commit",
            "give the 40 hex characters of the commit; a branch or tag may move under a run",
        )
    return revision


def rows_of_file(path: Path, kind: str) -> Iterator[Row | Rejection]:
    """Yield (line, row) from 1, or the rejection of a line that holds no row. kind: jsonl, parquet or csv."""
    return {"parquet": _parquet_rows, "csv": _csv_rows}.get(kind, _jsonl_rows)(path)


def _jsonl_rows(path: Path) -> Iterator[Row | Rejection]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                # Decimal keeps the digits of a number as they were written: a ground truth of 1.50 stays 1.50.
                yield line, json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"), parse_float=Decimal)
            except UnicodeDecodeError:
                yield Rejection(line=line, reason="the line is not UTF-8")
            except (ValueError, RecursionError) as fault:
                yield Rejection(line=line, reason=f"the line is not JSON: {fault}")


def _parquet_rows(path: Path) -> Iterator[Row | Rejection]:
    import pyarrow
    import pyarrow.parquet

    try:
        line = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pyarrow.ArrowException, OSError) as fault:
        raise DatasetUnreadable(f"{path} cannot be read as Parquet: {fault}", "check `kind` and the file") from None


def _csv_rows(path: Path) -> Iterator[Row | Rejection]:
    """Rows by the names in the first line; their lines count from the one after it, as rows of Parquet do."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in enumerate(csv.DictReader(file, strict=True), start=1):
                extra = row.pop(None, None)  # type: ignore[call-overload]
                if extra is None:
                    yield line, row
                else:
                    yield Rejection(line=line, reason=f"the row has {len(extra)} more cells than the first line")
    except (csv.Error, UnicodeDecodeError) as fault:
        raise DatasetUnreadable(f"{path} cannot be read as CSV: {fault}", "check `kind` and the file") from None


def hub_file(declaration: Mapping[str, Any]) -> Path:
    """Return the local copy of a hub data set's file, downloaded if need be. Raises DatasetMissing."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo, file, revision = declaration["repo"], declaration["file"], pinned(declaration)
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as fault:
        raise DatasetMissing(
            f"{file} of the hub data set {repo} at {revision[:12]} cannot be had: {_first_line(fault)}",
            "check repo, file, revision and network; or download it and use `kind: jsonl` or `kind: parquet`",
        ) from None


def hub_kind(file: str) -> str:
    """Return jsonl, parquet or csv, by the name of a file. Raises DatasetUnreadable for another."""
    for kind, suffixes in {"parquet": (".parquet",), "jsonl": (".jsonl", ".ndjson"), "csv": (".csv",)}.items():
        if file.endswith(suffixes):
            return kind
    raise DatasetUnreadable(f"{file} is neither .jsonl nor .parquet nor .csv", "name a .jsonl, .parquet or .csv file")


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
