"""The store of artifacts: the tables that one stage wrote, in a directory named by the stage's key, and a manifest.

    home/artifacts/<first two of key>/<key>/<output>.parquet
                                            manifest.json
                                            manifest.sha256     the digest of manifest.json

A directory appears by one atomic rename with everything in it, is never changed after that, and of two publishers of
one key the first one wins. Whoever finds a manifest may rely on its files; `find` checks the manifest against the
digest beside it, and `read` each file against the manifest, all the same.
"""

import hashlib
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.disk import disk_faults_named
from storage.durable import json_bytes, move_into_place, new_temporary, sync_directory, take_away, write_bytes
from storage.errors import ArtifactCorrupt, ArtifactMissing, ManifestInvalid, SchemaMismatch
from storage.schemas import columns, from_table, to_table, validate

R = TypeVar("R")

MANIFEST_FORMAT = 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
_KEY = re.compile(r"[0-9a-f]{64}")
_OUTPUT = re.compile(r"[a-z][a-z0-9_]{0,63}")


class OutputFile(TypedDict):
    """One table of an artifact: the record class of its rows, and the file with its size in bytes and sha256."""

    record: str
    rows: int
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stage was, what it was made of and what it wrote. Times are Unix seconds, UTC.

    directories: name -> path relative to home, of weights or a checkpoint that the stage wrote beside its tables.
    counts: rows dropped, degraded, cut or timed out, by reason. metrics: finite figures of the stage.
    evidence: what the stage saw for itself, in words and digests, such as the weights that its sampler served.
    """

    key: str
    stage: str
    task: str
    stage_version: int
    iteration: int | None
    chunk: int | None
    started_at: float
    ended_at: float
    ingredients: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] | None = None
    outputs: dict[str, OutputFile] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    directories: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    format: int = MANIFEST_FORMAT

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Manifest":
        """Return the manifest that `to_json` gave. Raises TypeError or KeyError on anything else."""
        if value["format"] != MANIFEST_FORMAT:
            raise TypeError(f"a manifest of format {value['format']}, which another version of the program wrote")
        return Manifest(**value)


@dataclass(frozen=True, slots=True)
class Store:
    """The artifacts below `home`. It holds nothing but the path: any number of processes may use the same home."""

    home: Path

    def path(self, key: str) -> Path:
        """Return the directory of an artifact, published or not. Raises ManifestInvalid if `key` is no stage key."""
        if not _KEY.fullmatch(key):
            raise ManifestInvalid(f"{key!r} is no stage key: 64 hex characters are")
        return Path(self.home) / "artifacts" / key[:2] / key

    def find(self, key: str) -> Manifest | None:
        """Return the manifest of a published artifact, or None. Raises ArtifactCorrupt if it cannot be read."""
        path = self.path(key) / MANIFEST
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            manifest = Manifest.from_json(loads(content))
        except (JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise ArtifactCorrupt.of(path, f"a manifest of format {MANIFEST_FORMAT}", str(error)) from error
        if manifest.key != key:
            raise ArtifactCorrupt.of(path, f"the manifest of {key}", f"that of {manifest.key}")
        _check_seal(path, content)
        return manifest

    def has(self, key: str) -> bool:
        """Tell whether an artifact is published; nothing of it is read."""
        return (self.path(key) / MANIFEST).is_file()

    def publish(self, manifest: Manifest, tables: Mapping[str, tuple[type, Sequence[Any]]]) -> Manifest:
        """Write tables (output -> record class, rows) and the manifest, which gets its `outputs` here; return it.

        If the key is published already, by another process in the meantime or long ago, that one is kept and its
        manifest is returned. Raises RecordInvalid for rows that break their record's rules and ManifestInvalid for a
        manifest that JSON cannot keep, DiskFault when the disk is full or read-only; nothing is visible then.
        """
        final = self.path(manifest.key)
        published = self.find(manifest.key)
        if published is not None:
            return published
        with disk_faults_named(Path(self.home)):
            temporary = new_temporary(Path(self.home), manifest.key)
            try:
                outputs = {
                    name: write_table(temporary, manifest.key, name, record, _checked(name, record, rows))
                    for name, (record, rows) in tables.items()
                }
                manifest = replace(manifest, outputs=outputs)
                _write_manifest(temporary, manifest)
                return self._place(temporary, final, manifest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was moved into place

    def _place(self, temporary: Path, final: Path, manifest: Manifest) -> Manifest:
        while not move_into_place(temporary, final):
            older = self.find(manifest.key)
            if older is not None:
                return older
            take_away(Path(self.home), final)  # files without a manifest: no artifact, so nothing is lost
        return manifest

    def read(self, key: str, output: str, record: type[R]) -> list[R]:
        """Return the rows of one output.

        Raises ArtifactMissing if it was never published, SchemaMismatch if it holds another record, and
        ArtifactCorrupt, with the file, if the file is absent, cut short or altered since it was published.
        """
        manifest = self.find(key)
        if manifest is None:
            raise ArtifactMissing(f"no artifact {key} in {self.home}", "resume the run: its stage is then run again")
        if output not in manifest.outputs:
            raise ArtifactMissing(f"{manifest.stage} {key} has no output {output!r}, only {sorted(manifest.outputs)}")
        entry = manifest.outputs[output]
        if entry["record"] != record.__name__:
            raise SchemaMismatch(f"{manifest.stage}.{output} holds {entry['record']}, not {record.__name__}")
        path = self.path(key) / entry["file"]
        return from_table(record, _parse(path, checked_bytes(path, entry)))


def checked_bytes(path: Path, entry: OutputFile) -> bytes:
    """Return the content of a published file. Raises ArtifactCorrupt if it is not what the manifest says."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactCorrupt.of(path, f"a file of {entry['bytes']} bytes", "no file") from error
    if len(content) != entry["bytes"]:
        raise ArtifactCorrupt.of(path, f"{entry['bytes']} bytes", f"{len(content)} bytes")
    actual = hashlib.sha256(content).hexdigest()
    if actual != entry["sha256"]:
        raise ArtifactCorrupt.of(path, f"sha256 {entry['sha256']}", f"sha256 {actual}")
    return content


def _parse(path: Path, content: bytes) -> pa.Table:
    try:
        # On this thread alone: a read-ahead thread that still held these bytes at exit would abort the process.
        return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    except pa.ArrowException as error:
        raise ArtifactCorrupt.of(path, "a Parquet file", str(error)) from error


def _checked(name: str, record: type, rows: Sequence[Any]) -> pa.Table:
    if not _OUTPUT.fullmatch(name):
        raise ManifestInvalid(f"{name!r} is no output name: lower-case letters, digits and _ are")
    table = to_table(record, rows)
    validate(record, rows)
    return table


def write_table(directory: Path, key: str, name: str, record: type, table: pa.Table) -> OutputFile:
    """Write one output of an artifact, in which every row names the artifact; return its entry in the manifest."""
    artifact = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([key]))
    table = table.add_column(0, pa.field("artifact", artifact.type, nullable=False), artifact)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", **parquet_options(record))
    content = buffer.getvalue()
    write_bytes(directory / f"{name}.parquet", content)
    return OutputFile(
        record=record.__name__,
        rows=len(table),
        file=f"{name}.parquet",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def parquet_options(record: type) -> dict[str, Any]:
    """Return how the columns of a record are encoded.

    Log-probs are all different: a dictionary of them takes a third of the time of writing and saves nothing. Their
    bytes are stored by significance instead, which compresses better.
    """
    known = columns(record)
    leaves = {item.name: f"{item.name}.list.element" if "list" in item.kind else item.name for item in known}
    floats = [leaves[item.name] for item in known if item.kind == "list<float32>"]
    if not floats:
        return {}
    others = ["artifact", *(leaf for leaf in leaves.values() if leaf not in floats)]
    return {"use_dictionary": others, "use_byte_stream_split": floats}


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    try:
        content = json_bytes(manifest.to_json())
    except (TypeError, ValueError) as error:
        raise ManifestInvalid(f"the manifest of {manifest.stage} {manifest.key} is no JSON: {error}") from error
    write_bytes(directory / SEAL, _seal(content))
    sync_directory(directory)
    write_bytes(directory / MANIFEST, content)
    sync_directory(directory)


def _seal(manifest: bytes) -> bytes:
    return hashlib.sha256(manifest).hexdigest().encode("ascii") + b"\n"


def _check_seal(path: Path, content: bytes) -> None:
    """Raise ArtifactCorrupt if a manifest is not what was published; `cgrpo audit` names one without a seal."""
    seal = path.with_name(SEAL)
    if seal.is_file() and seal.read_bytes() != _seal(content):
        raise ArtifactCorrupt.of(path, f"what {SEAL} beside it says", "another content")
