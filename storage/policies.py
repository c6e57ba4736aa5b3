"""Directories of weights and checkpoints: too large and too foreign for a table, but published with the same care.

    home/weights/<key>/       what a sampler loads: Hugging Face format
    home/checkpoints/<key>/   what a trainer goes on from: weights, optimizer, scheduler, RNG

`DIGESTS.json` is written last and lists every file with size and sha256 (listings.py); a directory without it is not
there. Weights are a cache: a trainer can write them again from a checkpoint and the stored training samples. So old
ones are dropped, and new ones are not synced: what a power failure leaves of them is found by digest and made again.
"""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from storage.disk import disk_faults_named
from storage.durable import (
    json_bytes,
    move_into_place,
    new_temporary,
    sync_directory,
    sync_file,
    take_away,
    write_bytes,
)
from storage.errors import DirectoryInvalid
from storage.listings import FileEntry, entry_of, entry_of_weights, is_as_listed, read_entry

Kind = Literal["weights", "checkpoints"]

DIGESTS = "DIGESTS.json"
WEIGHTS_SUFFIX = ".safetensors"
_RELATIVE = re.compile(r"(weights|checkpoints)/[0-9a-f]{64}")


def publish_directory(
    home: Path, kind: Kind, key: str, write: Callable[[Path], None], weights_sha256: str | None = None
) -> str:
    """Have `write(directory)` fill a new directory, publish it under `key`, and return its path relative to home.

    weights_sha256: the digest of the policy all of whose tensors are in the safetensors file that `write` writes.
    A complete directory that is there already is kept, and `write` is then not called. What `write` raises passes
    through, and nothing is visible then. Raises DirectoryInvalid for links and for a `write` that wrote nothing, and
    DiskFault.
    """
    relative = f"{kind}/{key}"
    final = _resolve(home, relative)
    if complete(home, relative):
        return relative
    with disk_faults_named(home):
        temporary = new_temporary(home, f"{kind}-{key}")
        try:
            write(temporary)
            write_digests(temporary, synced=kind != "weights", weights_sha256=weights_sha256)
            while not move_into_place(temporary, final):
                if complete(home, relative):
                    break
                take_away(home, final)  # cut short or tampered with: never chosen by anyone
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was moved into place
    return relative


def complete(home: Path, relative: str) -> bool:
    """Tell whether a directory was published and still has every file in its full size."""
    directory = _resolve(home, relative)
    entries = _digests(directory)
    if entries is None:
        return False
    return all(_size(directory / name) == entry["bytes"] for name, entry in entries.items())


def damaged_files(home: Path, relative: str) -> list[str]:
    """Return the files of a published directory that are no longer what they were; reads all of them."""
    directory = _resolve(home, relative)
    entries = _digests(directory)
    if entries is None:
        return [DIGESTS]
    return [name for name, entry in entries.items() if not is_as_listed(directory / name, entry)]


def drop(home: Path, relative: str) -> bool:
    """Delete a directory, so that it vanishes at once and whole; return False if it was not there."""
    return take_away(home, _resolve(home, relative))


def drop_superseded(home: Path, keep: set[str], newest: int) -> list[str]:
    """Delete weights directories but for the `newest` published last and those in `keep`; return what was deleted.

    keep: relative paths, such as those of policies that a sampler may still ask for. Checkpoints are never touched.
    """
    if newest < 0:
        raise DirectoryInvalid(f"cannot keep the newest {newest} directories of weights")
    found = [
        f"weights/{path.name}" for path in (home / "weights").glob("*") if _RELATIVE.fullmatch(f"weights/{path.name}")
    ]
    ordered = sorted(found, key=lambda relative: (_published_at(home / relative), relative), reverse=True)
    return [relative for relative in ordered[newest:] if relative not in keep and drop(home, relative)]


def _resolve(home: Path, relative: str) -> Path:
    if not _RELATIVE.fullmatch(relative):
        raise DirectoryInvalid(f"{relative!r} is no directory of weights or a checkpoint: weights/<key> is")
    return Path(home) / relative


def write_digests(directory: Path, *, synced: bool = True, weights_sha256: str | None = None) -> None:
    """List what was written to a directory in its DIGESTS.json: from then on the directory is complete."""
    entries: dict[str, FileEntry] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise DirectoryInvalid(f"{path.name} is a link; only files of its own make a directory that can be kept")
        if path.is_dir():
            sync_directory(path)
            continue
        name = path.relative_to(directory).as_posix()
        if weights_sha256 and path.suffix == WEIGHTS_SUFFIX:
            entries[name] = entry_of_weights(path, weights_sha256)
            continue
        with ThreadPoolExecutor(1) as beside:  # the disk writes what the processor hashes
            entry = beside.submit(entry_of, path)
            if synced:
                sync_file(path)
        entries[name] = entry.result()
    if not entries:
        raise DirectoryInvalid(f"nothing was written to {directory.name}")
    sync_directory(directory)
    write_bytes(directory / DIGESTS, json_bytes({"format": 1, "files": entries}))
    sync_directory(directory)


def _digests(directory: Path) -> dict[str, FileEntry] | None:
    try:
        files = json.loads((directory / DIGESTS).read_bytes())["files"]
        return {name: read_entry(entry) for name, entry in files.items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or cut short: either way the directory is not complete


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _published_at(directory: Path) -> tuple[int, str]:
    marker = directory / DIGESTS
    return (marker.stat().st_mtime_ns if marker.exists() else 0, directory.name)
