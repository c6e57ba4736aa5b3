"""The journal of a run: what its files and artifacts were when they were written, kept apart from them.

    home/runs/<name>/journal.jsonl    a line is an entry: <sha256 of the rest of the line> <JSON>

Each entry holds the digest of the line before it, so that no line can be changed, moved or taken out unseen, and since
an attempt's end is an entry too, neither can the last lines. Entries are only ever added. A file may have several, such
as the start and the end of an attempt: it is intact when it is any of them.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Literal

from cgrpo_core.ids import canonical_json
from storage.durable import make_directories, replace_file, sync_directory

JOURNAL = "journal.jsonl"
Kind = Literal["file", "artifact", "directory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What something was. name: a path within the run's directory, a stage key, or a path relative to home.

    sha256: of the file; of the artifact's manifest; of the list of files in a directory of weights or a checkpoint.
    """

    kind: Kind
    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The entries that can be trusted, in order, and what is wrong with the line after them, if anything."""

    entries: tuple[Entry, ...]
    damage: str | None

    def recorded(self, kind: Kind) -> dict[str, set[str]]:
        """Return name -> every digest that it was recorded with."""
        found: dict[str, set[str]] = {}
        for entry in self.entries:
            if entry.kind == kind:
                found.setdefault(entry.name, set()).add(entry.sha256)
        return found


def append(run_directory: Path, entries: Iterable[Entry]) -> None:
    """Add entries, durable on return; one process at a time.

    A last line without its end was never acknowledged (the machine went down while it was written): it is cut off.
    """
    texts = [asdict(entry) for entry in entries]
    if not texts:
        return
    path = run_directory / JOURNAL
    is_new = not path.exists()
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go of it should this process die
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        previous = _line_digest(whole.splitlines()[-1]) if whole else ""
        lines = []
        for text in texts:
            line = canonical_json({**text, "previous": previous}).encode()
            previous = hashlib.sha256(line).hexdigest()
            lines.append(previous.encode() + b" " + line + b"\n")
        file.truncate(len(whole))
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_directory(run_directory)


def write_recorded(run_directory: Path, name: str, content: bytes) -> None:
    """Put a file into the run's directory, in the place of what was there, with its digest in the journal.

    The journal comes first: a kill in between leaves the file in its state before, which is recorded too.
    """
    path = run_directory / name
    if path.is_file() and path.read_bytes() == content:
        return
    make_directories(path.parent)
    append(run_directory, [Entry(kind="file", name=name, sha256=hashlib.sha256(content).hexdigest())])
    replace_file(path, content)


def read_journal(run_directory: Path) -> Journal:
    """Return the journal of a run, as far as its chain holds; an absent one is damage too."""
    try:
        content = (run_directory / JOURNAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Journal(entries=(), damage="absent")
    entries: list[Entry] = []
    previous = ""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        entry = _read_line(line, previous)
        if entry is None:
            return Journal(entries=tuple(entries), damage=f"line {number} is not what was written")
        entries.append(entry)
        previous = _line_digest(line)
    tail = content[content.rfind(b"\n") + 1 :]
    return Journal(entries=tuple(entries), damage="the last line is cut off" if tail else None)


def file_entry(run_directory: Path, name: str) -> Entry:
    """Return the entry of a file of the run's directory as it is now."""
    return Entry(kind="file", name=name, sha256=file_sha256(run_directory / name))


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line_digest(line: bytes) -> str:
    return line[:64].decode("ascii", "replace")


def _read_line(line: bytes, previous: str) -> Entry | None:
    text = line[65:]
    if line[64:65] != b" " or hashlib.sha256(text).hexdigest().encode() != line[:64]:
        return None
    try:
        value = loads(text)
        return Entry(**value) if value.pop("previous") == previous else None
    except (JSONDecodeError, TypeError, KeyError):
        return None
