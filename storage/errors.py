"""What can go wrong with what is kept. Each error says what happened, and in `hint` what to do about it."""

from pathlib import Path

from cgrpo_core.errors import UserError


class StorageError(UserError):
    """Base of all errors of the store."""


class RecordInvalid(StorageError):
    """A row breaks an invariant of its record: a repeated or empty id, a NaN, unequal lengths, a wrong type."""


class SchemaMismatch(StorageError):
    """A table, or a stored file, has another schema than the record that was asked for."""


class ManifestInvalid(StorageError):
    """A manifest holds a value that JSON cannot keep, or a key that is no stage key."""


class ArtifactMissing(StorageError):
    """No artifact was published under this key, or it has no output of this name."""


class ArtifactCorrupt(StorageError):
    """A stored file is absent, cut short or altered: `path` is the file, `expected` and `actual` say how it differs."""

    def __init__(self, message: str, hint: str = "", *, path: Path | None = None) -> None:
        super().__init__(message, hint)
        self.path = path
        self.expected = ""
        self.actual = ""

    @staticmethod
    def of(path: Path, expected: str, actual: str) -> "ArtifactCorrupt":
        """Return the error for `path`, with what the manifest says and what the disk holds."""
        error = ArtifactCorrupt(
            f"{path} is damaged: expected {expected}, found {actual}",
            f"remove the directory {path.parent} and resume the run: its stage is then run again",
            path=path,
        )
        error.expected, error.actual = expected, actual
        return error


class DirectoryInvalid(StorageError):
    """A directory of weights or a checkpoint cannot be published or named so."""


class RunNameInvalid(StorageError):
    """A run name that could not be a directory name everywhere."""


class RunExists(StorageError):
    """A run of this name is already there; runs are never overwritten."""


class RunNotFound(StorageError):
    """No run of this name, or no run at all."""


class RunCorrupt(StorageError):
    """A file of a run is absent or is not what was written there."""


class RunBusy(StorageError):
    """Another process runs this run at the moment."""


class QueryFailed(StorageError):
    """DuckDB refused a query, or failed in it; the message is DuckDB's own."""


class QueryTimeout(QueryFailed):
    """A query was interrupted at its deadline."""
