"""What a disk that is full, read-only or failing does to a run, in words: the errors of the system, named once."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from storage.errors import StorageError

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space: cgrpo gc --dry-run says what could go"),
    errno.EDQUOT: ("the quota is used up", "free some space: cgrpo gc --dry-run says what could go"),
    errno.EROFS: ("the file system is read-only", "mount it for writing, or set CGRPO_HOME to another directory"),
    errno.EACCES: ("writing is not permitted", "make the directory yours, or set CGRPO_HOME to another one"),
    errno.EPERM: ("writing is not permitted", "make the directory yours, or set CGRPO_HOME to another one"),
    errno.EIO: ("the disk reports input/output errors", "look at the kernel log (dmesg), and move the home elsewhere"),
}


class DiskFault(StorageError):
    """The disk could not be written to. What was published stays, and nothing half-written is visible."""

    exit_code: ClassVar[int] = 1  # no mistake in the input


def disk_fault(error: BaseException, home: Path) -> DiskFault | None:
    """Return what an error means for the data under `home`, or None if it is not of the disk.

    Writers in other languages (safetensors) raise errors of their own, with the words of the system in them.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        number = next((code for code in _CAUSES if f"(os error {code})" in str(error)), None)
    if number not in _CAUSES:
        return None
    cause, hint = _CAUSES[number]
    where = getattr(error, "filename", None) or home
    return DiskFault(f"{cause}: {where} could not be written ({_free(home)})", f"{hint}; then cgrpo resume")


@contextmanager
def disk_faults_named(home: Path) -> Iterator[None]:
    """Raise DiskFault for an error of the disk that leaves the block; anything else passes through."""
    try:
        yield
    except (
        Exception
    ) as error:  # Arrow wraps an OSError in types of its own; what is no fault of the disk rises as it is
        fault = disk_fault(error, home)
        if fault is None:
            raise
        raise fault from error


def _free(home: Path) -> str:
    try:
        return (
            f"{shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free / 2**20:.0f} MiB are free"
        )
    except OSError:
        return "its free space cannot be told"
