"""The compacted copy of a run, as it is read: its old iterations in few large files, in the place of many small ones.

    home/compacted/<run>/<first>-<last>/<stage>.<output>.parquet   rows of these iterations, each naming its artifact
                                        stages.parquet             their rows of the view `stages`, and their manifests
                                        places.parquet             the places of the whole plan: stage, iteration, key
                                        DIGESTS.json               size and sha256 of each file

A copy is a cache of the artifacts, made by storage/compaction.py. Only questions read it: what trains, resumes, replays
or audits reads artifacts. A part is used while every manifest that it was made from is there with the size and the time
of then, as git trusts its index; else the artifacts themselves are read, which is slower and says the same.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifacts import MANIFEST
from storage.attempts import run_directory
from storage.journal import file_sha256
from storage.plans import Place, collector_paused
from storage.policies import DIGESTS

FORMAT = 1
ROOM = "compacted"
STAGES, PLACES = "stages.parquet", "places.parquet"
STAMP = b"cgrpo"  # key of the metadata of STAGES and PLACES
_PART = re.compile(r"(\d{6,})-(\d{6,})")
State = tuple[int, int]  # size in bytes, and time of the last change in nanoseconds


@dataclass(frozen=True, slots=True)
class Part:
    """Iterations first..last of a run in large files; 0 is the setup. stages: a row for each of their stages."""

    path: Path
    first: int
    last: int
    stages: pa.Table

    @property
    def run(self) -> str:
        """The run that it is a part of."""
        return self.path.parent.name

    def tables(self) -> list[tuple[Path, str, str]]:
        """Return file, stage and record of each table."""
        return [(self.path / file, stage, record) for file, stage, record in self._stamp()["tables"]]

    def stage_keys(self) -> list[str]:
        """Return the keys of the stages, in plan order."""
        return list(self.stages.column("key").to_pylist())

    def is_fresh(self, states: Mapping[str, State]) -> bool:
        """Tell whether each manifest that the part was made from is there as it was."""
        columns = [self.stages.column(name).to_pylist() for name in ("key", "manifest_bytes", "manifest_changed_ns")]
        return all(states.get(key) == (size, changed) for key, size, changed in zip(*columns, strict=True))

    def _stamp(self) -> dict[str, Any]:
        return dict(json.loads(self.stages.schema.metadata[STAMP]))


def parts_of(home: Path, run: str) -> list[Part]:
    """Return the parts of a run's copy, each going on where the one before it ends; none if there is no copy.

    A part of another run that was called the same, or of another format, does not count.
    """
    found: list[Part] = []
    identity = run_identity(home, run)
    for first, last, path in _directories(home, run):
        if first != (found[-1].last + 1 if found else 0):
            continue
        table = _stamped(path / STAGES, identity)
        if table is not None:
            found.append(Part(path, first, last, table))
    return found


def fresh_parts(home: Path, run: str, states: Mapping[str, State]) -> list[Part]:
    """Return the parts of a run's copy that may stand for its artifacts, whose manifests are in these states."""
    return [part for part in parts_of(home, run) if part.is_fresh(states)]


def all_parts(home: Path, run: str) -> list[str]:
    """Return the directories of a run's copy, relative to home: those that are read, and what else is there."""
    return [path.relative_to(home).as_posix() for _, _, path in _directories(home, run)]


def manifest_states(home: Path, keys: Iterable[str]) -> dict[str, State]:
    """Return size and time of the manifest of each published stage; nothing is read."""
    found, root = {}, os.fspath(home / "artifacts")
    for key in keys:
        try:
            state = os.stat(f"{root}/{key[:2]}/{key}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        found[key] = (state.st_size, state.st_mtime_ns)
    return found


def copied_places(home: Path, run: str) -> tuple[Place, ...] | None:
    """Return the places of a run's plan from its compacted copy, or None if there is none."""
    identity = run_identity(home, run)
    for _, _, path in reversed(_directories(home, run)):
        table = _stamped(path / PLACES, identity)
        if table is not None:
            return _places(table)
    return None


def _places(table: pa.Table) -> tuple[Place, ...]:
    with collector_paused():
        names = ("stage", "task", "section", "iteration", "chunk", "key", "outputs", "engine")
        columns = [table.column(name).to_pylist() for name in names]
        return tuple(
            Place(stage, task, section, iteration, chunk, key, _parsed(outputs), _parsed(engine))
            for stage, task, section, iteration, chunk, key, outputs, engine in zip(*columns, strict=True)
        )


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return json.loads(text)


def run_identity(home: Path, run: str) -> str:
    """Return what tells this run from another that was once called the same; nothing if it cannot be read."""
    try:
        return f"{FORMAT} {file_sha256(run_directory(home, run) / 'run.json')}"
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _stamped(path: Path, identity: str) -> pa.Table | None:
    """Return a table of a complete part if it was made from the run of this identity."""
    if not (path.parent / DIGESTS).is_file():
        return None
    try:
        table = pq.read_table(path, use_threads=False)
        made_from = json.loads(table.schema.metadata[STAMP])["run"]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None  # a damaged cache: the artifacts are read, and an audit names it
    return table if identity and made_from == identity else None


def _directories(home: Path, run: str) -> list[tuple[int, int, Path]]:
    """Return first, last and path of each part, the longest first of those that begin with the same iteration."""
    room = home / ROOM / run
    names = [_PART.fullmatch(path.name) for path in room.iterdir()] if room.is_dir() else []
    places = [(int(name[1]), int(name[2]), room / name[0]) for name in names if name]
    return sorted(places, key=lambda place: (place[0], -place[1]))
