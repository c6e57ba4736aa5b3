"""A file as the listing of its directory has it: by the sha256 of its bytes, or, for weights, of its tensors.

    {"bytes": 51, "sha256": "9f…"}                                         any file
    {"bytes": 538090408, "header_sha256": "e1…", "weights_sha256": "c4…"}  weights in safetensors format

A trainer has hashed each tensor of new weights, for their digest is what makes them the same policy; each sampler
hashes what it loads. The file's own bytes would be hashed a third time while all wait. Header (names, types, shapes,
places) and tensors are all that such a file has, so no byte of it goes unseen.
"""

from pathlib import Path
from typing import Any

from storage.journal import file_sha256
from storage.tensor_files import header_sha256, tensors_sha256

FileEntry = dict[str, int | str]


def entry_of(path: Path) -> FileEntry:
    """Return how a listing has a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def entry_of_weights(path: Path, weights_sha256: str) -> FileEntry:
    """Return how a listing has a safetensors file of all tensors of the policy with this digest; none is read."""
    return {"bytes": path.stat().st_size, "header_sha256": header_sha256(path), "weights_sha256": weights_sha256}


def is_as_listed(path: Path, entry: FileEntry) -> bool:
    """Tell whether a file is still what its entry says; reads all of it."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    if "sha256" in entry:
        return file_sha256(path) == entry["sha256"]
    try:
        return header_sha256(path) == entry["header_sha256"] and tensors_sha256([path]) == entry["weights_sha256"]
    except ValueError:  # it is no such file any more
        return False


def read_entry(entry: Any) -> FileEntry:
    """Return an entry without anything else. Raises KeyError, TypeError or ValueError if something is missing."""
    names = ["sha256"] if "sha256" in entry else ["header_sha256", "weights_sha256"]
    return {"bytes": int(entry["bytes"]), **{name: str(entry[name]) for name in names}}
