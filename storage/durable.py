"""Writing that survives a crash: files are synced, and a directory appears whole or not at all.

Temporary directories lie in `home/tmp`, on the same file system as what they become and outside every directory that
is listed or globbed (DuckDB's globs match dotfiles, so a leading dot would hide nothing).
"""

import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of the file `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Create `path` and its missing parents, each one durable in the directory that holds it."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_directory(created.parent)


def new_temporary(home: Path, name: str) -> Path:
    """Return a new empty directory in `home/tmp`."""
    path = home / "tmp" / f"{name}.{uuid.uuid4().hex[:12]}"
    path.mkdir(parents=True)
    return path


def move_into_place(temporary: Path, final: Path) -> bool:
    """Rename the synced directory `temporary` to `final`; return False, changing nothing, if `final` is occupied."""
    make_directories(final.parent)
    try:
        os.rename(temporary, final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    sync_directory(final.parent)
    return True


def take_away(home: Path, path: Path) -> bool:
    """Remove the directory `path` so that it vanishes at once, then free its space; return False if it is absent."""
    doomed = new_temporary(home, "dropped")
    try:
        os.rename(path, doomed / path.name)
    except FileNotFoundError:
        doomed.rmdir()
        return False
    sync_directory(path.parent)
    shutil.rmtree(doomed)
    return True


def drop_leftovers(home: Path) -> int:
    """Delete what interrupted publishers left in `home/tmp` and return the count. Call only while nothing publishes."""
    leftovers = list((home / "tmp").iterdir()) if (home / "tmp").is_dir() else []
    for path in leftovers:
        shutil.rmtree(path)
    return len(leftovers)


def write_bytes(path: Path, content: bytes) -> None:
    """Write and sync a new file; the directory is for the caller to sync."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(value: Any) -> bytes:
    """Return `value` as readable ASCII JSON. Raises TypeError or ValueError for anything that JSON cannot keep."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
    write_bytes(temporary, content)
    os.replace(temporary, path)
    sync_directory(path.parent)
