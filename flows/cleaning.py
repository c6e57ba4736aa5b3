"""What `cgrpo gc` and `cgrpo compact` say and do."""

from dataclasses import asdict
from pathlib import Path

from flows.report import show_table
from flows.terminal import as_gib, dump_json, say
from storage.compaction import compact
from storage.gc import Garbage, collect, find_garbage
from storage.runs import HomeLock


def clean(home: Path, *, dry_run: bool, every: bool, as_json: bool) -> None:
    """Say what may be removed and, unless that was all, remove it. Raises RunBusy while a run goes on here."""
    if not dry_run and home.is_dir():
        with HomeLock(home, alone=True):
            pass  # refused before anything is said
    found = find_garbage(home)
    size = sum(item.bytes for item in found)
    if not as_json:
        _show(found, every=every)
        say(f"{len(found)} directories, {as_gib(size)}" + ("; nothing was removed" if dry_run else ""))
    removed = 0 if dry_run or not found else collect(home, found)
    if as_json:
        dump_json({"garbage": [asdict(item) for item in found], "bytes": size, "removed_bytes": removed})
    elif not dry_run:
        say(f"{as_gib(removed)} removed")


def _show(found: list[Garbage], *, every: bool) -> None:
    if every:
        show_table(["kind", "path", "size", "why"], [[i.kind, i.path, as_gib(i.bytes), i.why] for i in found])
        return
    groups: dict[tuple[str, str], list[int]] = {}
    for item in found:
        groups.setdefault((item.kind, item.why), []).append(item.bytes)
    rows = [[kind, len(sizes), as_gib(sum(sizes)), why] for (kind, why), sizes in groups.items()]
    if rows:
        show_table(["kind", "directories", "size", "why"], rows)


def compact_run(home: Path, run: str | None, *, as_json: bool) -> None:
    """Copy what is complete and not copied yet, and say what that gave."""
    done = compact(home, run, say)
    if as_json:
        dump_json(asdict(done))
        return
    if done.stale:
        say(f"{done.stale} parts of the copy were made from artifacts that have changed since, and were removed")
    if done.iterations is None:
        say(f"run {done.run}: every complete iteration is in its copy already")
        return
    first, last = done.iterations
    say(f"run {done.run}: iterations {first} to {last}, {done.rows} rows of {done.files} tables")
    say(f"{as_gib(done.bytes_before)} of them take {as_gib(done.bytes)} in their copy; the artifacts stay as they are")
