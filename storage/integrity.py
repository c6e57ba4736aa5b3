"""Whether every byte that a run rests on is what was written: its own files, its artifacts, its weights, checkpoints.

Nothing is computed anew and nothing is mended here. A finding names the file and what is wrong with it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.artifacts import MANIFEST, SEAL, Store
from storage.attempts import list_attempts, run_directory
from storage.compacted import ROOM, all_parts, parts_of
from storage.durable import json_bytes
from storage.errors import ArtifactCorrupt, RunCorrupt
from storage.journal import JOURNAL, file_sha256, read_journal
from storage.listings import is_as_listed, read_entry
from storage.policies import DIGESTS

Severity = Literal["damage", "note"]
LOCK = "lock"  # holds the process id of whoever runs the run: not a record of anything
PART = ".part"  # replace_file was killed before it replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong with one file, stage or update (damage), or could not be held against anything (note).

    subject: a path relative to home, or a stage as `advantage 3.0`.
    """

    check: str
    severity: Severity
    subject: str
    problem: str


def damage(check: str, subject: str, problem: str) -> Finding:
    """Return a finding that makes an audit fail."""
    return Finding(check=check, severity="damage", subject=subject, problem=problem)


def note(check: str, subject: str, problem: str) -> Finding:
    """Return a finding that an audit reports and passes."""
    return Finding(check=check, severity="note", subject=subject, problem=problem)


def check_run_files(home: Path, name: str) -> Iterator[Finding]:
    """Yield what is wrong with the files in a run's directory: each must be in a state that its journal recorded."""
    directory = run_directory(home, name)
    journal = read_journal(directory)
    if journal.damage:
        yield damage("run", f"runs/{name}/{JOURNAL}", journal.damage)
    recorded, present = journal.recorded("file"), _files(directory)
    for relative in sorted(recorded.keys() - present):
        yield damage("run", f"runs/{name}/{relative}", "is gone")
    for relative in sorted(present - {JOURNAL, LOCK}):
        subject = f"runs/{name}/{relative}"
        if relative in recorded:
            if file_sha256(directory / relative) not in recorded[relative]:
                yield damage("run", subject, "is not what was written: its sha256 is none of those in the journal")
        elif relative.endswith(PART):
            yield note("run", subject, "is what a kill left of a write; nothing reads it")
        else:
            yield damage("run", subject, "was added: the journal does not know it")


def check_store(home: Path, name: str, keys: Iterable[str]) -> Iterator[Finding]:
    """Yield what is wrong with the artifacts of these stages of a run, and with weights and checkpoints under their
    keys: files added, gone or altered, unlike the digest beside them or the journal."""
    journal = read_journal(run_directory(home, name))
    artifacts, directories = journal.recorded("artifact"), journal.recorded("directory")
    completed, keys = _completed(home, name), list(keys)
    for key in keys:
        yield from _check_artifact(Path(home), key, artifacts.get(key, set()), completed)
        for kind in ("weights", "checkpoints"):
            relative = f"{kind}/{key}"
            if (home / relative).exists():  # an absent one is a cache that was dropped
                yield from _check_directory(Path(home), relative, directories.get(relative, set()))
    rooms = {f"artifacts/{key[:2]}" for key in keys} | {"weights", "checkpoints"}
    for room in sorted(rooms):
        for path in sorted((home / room).glob("*")):
            if not path.is_dir():
                yield damage("artifact", f"{room}/{path.name}", "was added: only directories are here")


def check_copy(home: Path, name: str) -> Iterator[Finding]:
    """Yield what is wrong with the compacted copy of a run: its files, and whether its manifests are those of now."""
    recorded = read_journal(run_directory(home, name)).recorded("directory")
    for relative in all_parts(home, name):
        yield from _check_directory(home, relative, recorded.get(relative, set()))
    for part in parts_of(home, name):
        sums = zip(*(part.stages.column(column).to_pylist() for column in ("key", "manifest_sha256")), strict=True)
        others = [key for key, sha256 in sums if _manifest_sha256(home, key) != sha256]
        if others:
            subject, count = f"{ROOM}/{name}/{part.path.name}", len(others)
            problem = (
                f"{count} of its artifacts are others now, such as {others[0][:12]}; cgrpo compact copies them anew"
            )
            yield note("directory", subject, problem)


def _manifest_sha256(home: Path, key: str) -> str | None:
    path = Store(home).path(key) / MANIFEST
    return file_sha256(path) if path.is_file() else None


def _completed(home: Path, name: str) -> bool:
    try:
        attempts = list_attempts(home, name)
    except RunCorrupt:
        return False  # `check_run_files` names it
    return bool(attempts) and attempts[-1].state == "completed"


def _check_artifact(home: Path, key: str, recorded: set[str], completed: bool) -> Iterator[Finding]:
    store, directory = Store(home), Store(home).path(key)
    subject = f"artifacts/{key[:2]}/{key}/{MANIFEST}"
    if not (directory / MANIFEST).is_file():
        if recorded or completed or directory.exists():
            yield damage("artifact", subject, "is gone")
        return
    try:
        manifest = store.find(key)
    except ArtifactCorrupt as error:
        if file_sha256(directory / MANIFEST) in recorded:
            yield damage("artifact", subject.replace(MANIFEST, SEAL), "is not the digest of the manifest")
        else:
            yield damage("artifact", subject, f"expected {error.expected}, found {error.actual}")
        return
    assert manifest is not None
    if recorded and file_sha256(directory / MANIFEST) not in recorded:
        yield damage("artifact", subject, "is not the manifest that the journal recorded")
    if not recorded and completed:
        yield damage("artifact", subject, "is not in the journal of a run that is complete")
    elif not recorded:
        # Another run that shares the stage may have published it, or a kill came before the seal.
        yield note("artifact", subject, "is not in the journal yet; cgrpo resume seals it")
    files: dict[str, Any] = {entry["file"]: entry for entry in manifest.outputs.values()}
    yield from _check_files(home, directory, files, {MANIFEST, SEAL})


def _check_directory(home: Path, relative: str, recorded: set[str]) -> Iterator[Finding]:
    listing = home / relative / DIGESTS
    files = _listed(listing)
    if files is None or (recorded and file_sha256(listing) not in recorded):
        yield damage("directory", f"{relative}/{DIGESTS}", "is gone, or is not what was written")
        return
    yield from _check_files(home, home / relative, files, {DIGESTS})


def _listed(listing: Path) -> dict[str, Any] | None:
    """Return name -> entry (listings.py) of a DIGESTS.json, or None if it is not as `publish_directory` writes it."""
    try:
        content = listing.read_bytes()
        files: dict[str, Any] = json.loads(content)["files"]
        entries = [read_entry(entry) for entry in files.values()]
        written = json_bytes({"format": 1, "files": dict(zip(files, entries, strict=True))})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if written == content else None


def _check_files(home: Path, directory: Path, files: dict[str, Any], besides: set[str]) -> Iterator[Finding]:
    """Hold the files of a directory against name -> entry; `besides`: those that must be there as well."""
    check = "artifact" if SEAL in besides else "directory"
    where, present = directory.relative_to(home).as_posix(), _files(directory)
    for name in sorted((files.keys() | besides) - present):
        yield damage(check, f"{where}/{name}", "is gone")
    for name in sorted(present - files.keys() - besides):
        yield damage(check, f"{where}/{name}", "was added")
    for name in sorted(files.keys() & present):
        size = (directory / name).stat().st_size
        if size != files[name]["bytes"]:
            yield damage(check, f"{where}/{name}", f"has {size} bytes, not {files[name]['bytes']}")
        elif not is_as_listed(directory / name, read_entry(files[name])):
            yield damage(check, f"{where}/{name}", "is not what was written: another sha256")


def _files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
