"""Sealing: the digests of what the stages of a run published go into the run's journal.

The flow does it when an iteration is through and also when one of its stages failed. Stages
publish in other processes, so a kill can fall between a publish and its seal: the next attempt seals what is there.
Until then the digest that lies beside each manifest stands for it (artifacts.py).
"""

from collections.abc import Iterable
from pathlib import Path

from storage.artifacts import MANIFEST, Store
from storage.attempts import run_directory
from storage.journal import Entry, append, file_sha256, read_journal
from storage.plans import StagePlan
from storage.policies import DIGESTS


def seal_stages(home: Path, name: str, stages: Iterable[StagePlan]) -> int:
    """Add the published stages, and the directories that they wrote, to the journal of a run; return how many entries.

    What is recorded already as it is now is left out. Raises ArtifactCorrupt for a manifest that
    is no longer what was published.
    """
    directory = run_directory(home, name)
    known = set(read_journal(directory).entries)
    fresh = [entry for stage in stages for entry in _entries(Path(home), stage) if entry not in known]
    append(directory, dict.fromkeys(fresh))
    return len(fresh)


def _entries(home: Path, stage: StagePlan) -> list[Entry]:
    store = Store(home)
    manifest = store.find(stage.key)  # checked against the digest beside it
    if manifest is None:
        return []
    sha256 = file_sha256(store.path(stage.key) / MANIFEST)
    found = [Entry(kind="artifact", name=stage.key, sha256=sha256)]
    for relative in manifest.directories.values():
        listing = home / relative / DIGESTS
        if listing.is_file():  # weights may be dropped by now: a cache
            found.append(Entry(kind="directory", name=relative, sha256=file_sha256(listing)))
    return found
