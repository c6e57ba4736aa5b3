"""Attempts at a run: a file for each process that worked on it, and the lock that lets one do so at a time."""

import fcntl
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from storage.durable import json_bytes, make_directories
from storage.errors import RunBusy, RunCorrupt, RunNameInvalid
from storage.journal import write_recorded

AttemptEnd = Literal["completed", "failed", "interrupted"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PROBE_PATIENCE_S = 1.0  # a reader of the state holds the lock for an instant; a runner does not give up for that


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process that worked on a run. `state` is None while it runs, and for ever if it was killed."""

    number: int
    pid: int
    started_at: float
    ended_at: float | None = None
    state: AttemptEnd | None = None
    error: str | None = None


def is_run_name(name: str) -> bool:
    """Tell whether a run may be called so."""
    return _NAME.fullmatch(name) is not None


def run_directory(home: Path, name: str) -> Path:
    """Return the directory of a run. Raises RunNameInvalid for a name that is not `[a-z0-9][a-z0-9._-]{0,63}`."""
    if not is_run_name(name):
        raise RunNameInvalid(
            f"{name!r} is no run name",
            "a name has up to 64 lower-case letters, digits, dots, underscores and hyphens, and begins with a letter "
            "or digit",
        )
    return Path(home) / "runs" / name


def start_attempt(home: Path, name: str) -> int:
    """Write the start of a new attempt by this process and return its number, from 1. Hold the RunLock meanwhile."""
    attempts = list_attempts(home, name)
    number = attempts[-1].number + 1 if attempts else 1
    _write_attempt(home, name, Attempt(number=number, pid=os.getpid(), started_at=time.time()))
    return number


def end_attempt(home: Path, name: str, number: int, state: AttemptEnd, error: str | None = None) -> None:
    """Write how an attempt ended. Raises RunCorrupt if it was never started."""
    for attempt in list_attempts(home, name):
        if attempt.number == number:
            values = asdict(attempt) | {"ended_at": time.time(), "state": state, "error": error}
            return _write_attempt(home, name, Attempt(**values))
    raise RunCorrupt(f"run {name} has no attempt {number}")


def list_attempts(home: Path, name: str) -> list[Attempt]:
    """Return the attempts at a run, first to last. Raises RunCorrupt if one cannot be read."""
    found = []
    for path in (run_directory(home, name) / "attempts").glob("*.json"):
        try:
            found.append(Attempt(**json.loads(path.read_bytes())))
        except (OSError, ValueError, TypeError) as error:
            raise run_corrupt(path, error) from error
    return sorted(found, key=lambda attempt: attempt.number)


def _write_attempt(home: Path, name: str, attempt: Attempt) -> None:
    content = json_bytes({key: _encodable(value) for key, value in asdict(attempt).items()})
    write_recorded(run_directory(home, name), f"attempts/{attempt.number}.json", content)


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def run_corrupt(path: Path, error: Exception) -> RunCorrupt:
    """Return the error for a file of a run that cannot be read."""
    return RunCorrupt(f"{path} cannot be read: {error}", f"the run cannot go on; remove {path.parent} to be rid of it")


class RunLock:
    """Held, as a context, by the one process that runs a run. Raises RunBusy with its pid if another one does.

    It holds its share of the home with it, so that nothing is cleaned up under it (HomeLock).
    """

    def __init__(self, home: Path, name: str) -> None:
        self._name = name
        self._home = HomeLock(home)
        self._path = run_directory(home, name) / "lock"
        self._descriptor = -1

    def __enter__(self) -> "RunLock":
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock_patiently(self._descriptor, fcntl.LOCK_EX):
            holder = os.pread(self._descriptor, 20, 0).decode("ascii").strip() or "unknown"
            os.close(self._descriptor)
            raise RunBusy(
                f"run {self._name} is being run by process {holder}",
                f"wait for it, or end it (kill -INT {holder}); cgrpo status {self._name} shows how far it is",
            )
        try:
            self._home.__enter__()
        except RunBusy:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode("ascii"), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._home.__exit__(kind, error, trace)
        os.close(self._descriptor)


class HomeLock:
    """A share of the home, as a context, for whoever adds to it; `alone`: all of it, for whoever cleans up.

    Raises RunBusy if somebody cleans up, or for `alone` if anybody has a share.
    """

    def __init__(self, home: Path, *, alone: bool = False) -> None:
        self._path, self._alone = Path(home) / "home.lock", alone
        self._descriptor = -1

    def __enter__(self) -> "HomeLock":
        make_directories(self._path.parent)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if _lock_patiently(self._descriptor, fcntl.LOCK_EX if self._alone else fcntl.LOCK_SH):
            return self
        os.close(self._descriptor)
        if self._alone:
            raise RunBusy(
                "a run is going on here, or just being made", "wait until it has ended: cgrpo status shows it"
            )
        raise RunBusy("cgrpo gc is cleaning up here", "try again when it has ended")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def is_running(home: Path, name: str) -> bool:
    """Tell whether a living process holds the lock of a run."""
    try:
        descriptor = os.open(run_directory(home, name) / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock_patiently(descriptor: int, operation: int) -> bool:
    """Lock, waiting no longer than somebody needs who only looks."""
    patience = time.monotonic() + _PROBE_PATIENCE_S
    while not _try_lock(descriptor, operation):
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
