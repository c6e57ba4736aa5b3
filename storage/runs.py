"""Runs: what was asked for, the frozen plan, and a file for each attempt at carrying it out.

    home/runs/<name>/run.json           name, pipeline, parent, options as the user typed them
                     plan.json          the frozen plan; its `config` is the resolved declaration
                     attempts/<n>.json  start, and end unless the process was killed
                     journal.jsonl      digests of all of these and of what the run published (journal.py)
                     lock               held (flock) by the process that runs it; the kernel lets go when it dies

Nothing here says how far a run is: `run_state` derives that from the plan and the published manifests.
"""

import json
import shutil
import time
import uuid
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cgrpo_core.records import Policy
from storage.artifacts import Store
from storage.attempts import (
    Attempt,
    HomeLock,
    RunLock,
    end_attempt,
    is_run_name,
    is_running,
    list_attempts,
    run_corrupt,
    run_directory,
    start_attempt,
)
from storage.code_identity import code_identity
from storage.compacted import copied_places, manifest_states
from storage.durable import json_bytes, move_into_place, new_temporary, sync_directory, write_bytes
from storage.errors import RunExists, RunNotFound
from storage.journal import append, file_entry
from storage.plans import Place, Plan, collector_paused, place_of

__all__ = [
    "Attempt",
    "HomeLock",
    "Run",
    "RunLock",
    "RunState",
    "create_run",
    "end_attempt",
    "is_running",
    "list_attempts",
    "list_runs",
    "open_run",
    "read_places",
    "read_plan",
    "run_directory",
    "run_state",
    "start_attempt",
    "state_of",
]


State = Literal["new", "running", "completed", "failed", "interrupted", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked for. options: file, profile, presets, sets, as typed. created_at: Unix seconds, UTC.

    code: what the program was that planned it (code_identity.py).
    """

    name: str
    pipeline: str
    parent: str | None
    created_at: float
    options: dict[str, Any]
    config: dict[str, Any]
    code: dict[str, Any] = field(default_factory=dict)


def create_run(
    home: Path, *, name: str | None, plan: Plan, options: Mapping[str, Any], parent: str | None = None
) -> Run:
    """Freeze a plan as a new run and return it; without a name it is called after the pipeline and the time (UTC).

    Raises RunExists if there is a run of this name, which is left as it is, and RunNameInvalid.
    """
    # After every other run, also when the clock was set back: "the newest run" is the one that was made last.
    now = max([time.time(), *(run.created_at + 1e-3 for run in list_runs(home))])
    if name is None:
        name = f"{plan.pipeline}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{uuid.uuid4().hex[:4]}"
    run_directory(home, name)  # a name that cannot be is refused first
    run = Run(
        name=name,
        pipeline=plan.pipeline,
        parent=parent,
        created_at=now,
        options=dict(options),
        config=plan.config,
        code=code_identity(),
    )
    with HomeLock(home):
        _write_run(home, run, plan)
    return run


def _write_run(home: Path, run: Run, plan: Plan) -> None:
    temporary = new_temporary(Path(home), f"run-{run.name}")
    try:
        (temporary / "attempts").mkdir()
        write_bytes(temporary / "plan.json", json_bytes(plan.to_json()))
        write_bytes(temporary / "run.json", json_bytes(asdict(run)))
        append(temporary, [file_entry(temporary, name) for name in ("plan.json", "run.json")])
        sync_directory(temporary)
        if not move_into_place(temporary, run_directory(home, run.name)):
            raise RunExists(
                f"there is a run called {run.name}", f"go on with it: cgrpo resume {run.name}; or use another --name"
            )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was moved into place


def list_runs(home: Path) -> list[Run]:
    """Return all runs, oldest first."""
    directory = Path(home) / "runs"
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    runs = [_read_run(home, name) for name in names if is_run_name(name)]
    return sorted(runs, key=lambda run: (run.created_at, run.name))


def open_run(home: Path, name: str | None = None) -> Run:
    """Return a run by name, or the newest. Raises RunNotFound, with the nearest name in the hint."""
    if name is not None and run_directory(home, name).is_dir():
        return _read_run(home, name)
    runs = list_runs(home)
    if name is None and runs:
        return runs[-1]
    if not runs:
        raise RunNotFound(f"no run{'' if name is None else ' ' + name} in {home}", "start one: cgrpo run critique-grpo")
    names = [run.name for run in runs]
    near = get_close_matches(str(name), names, n=1)
    raise RunNotFound(f"no run {name} in {home}", f"did you mean {near[0]}?" if near else f"runs: {', '.join(names)}")


def read_plan(home: Path, name: str) -> Plan:
    """Return the frozen plan of a run. Raises RunCorrupt if it cannot be read."""
    path = run_directory(home, name) / "plan.json"
    try:
        state = path.stat()
        return _parse_plan(path, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise run_corrupt(path, error) from error


def read_places(home: Path, name: str) -> tuple[Place, ...]:
    """Return the places of a run's stages in plan order, from its compacted copy if there is one: a long plan is long
    to read. Raises RunCorrupt if the plan cannot be read."""
    copied = copied_places(home, name)
    return copied if copied is not None else tuple(place_of(stage) for stage in read_plan(home, name).stages)


@lru_cache(maxsize=2)  # a flow asks for its plan in every iteration, and that of 1,000 iterations is 45 MB of JSON
def _parse_plan(path: Path, _modified_ns: int, _size: int) -> Plan:
    content = path.read_bytes()
    with collector_paused():
        return Plan.from_json(json.loads(content))


def _read_run(home: Path, name: str) -> Run:
    path = run_directory(home, name) / "run.json"
    try:
        return Run(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise run_corrupt(path, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands. iteration: the last one whose update is published, 0 for none. The policy is the newest."""

    name: str
    state: State
    iteration: int
    iterations: int
    policy_version: int | None
    weights_sha256: str | None
    stages_published: int
    stages_total: int
    error: str | None


def run_state(home: Path, name: str | None = None) -> RunState:
    """Return the state of a run, or of the newest. Raises RunNotFound, RunCorrupt, ArtifactCorrupt."""
    name = open_run(home, name).name
    places = read_places(home, name)
    return state_of(home, name, places, manifest_states(home, [place.key for place in places]))


def state_of(home: Path, name: str, places: Sequence[Place], published_keys: Container[str]) -> RunState:
    """Return the state of a run whose places and published stages are known."""
    state, error = _state(home, name)
    published = [place for place in places if place.key in published_keys]
    policy = _newest_policy(Store(home), published)
    return RunState(
        name=name,
        state=state,
        iteration=_last_iteration(place for place in published if _is_update(place)),
        iterations=_last_iteration(places),
        policy_version=policy.policy_version if policy else None,
        weights_sha256=policy.weights_sha256 if policy else None,
        stages_published=len(published),
        stages_total=len(places),
        error=error,
    )


def _state(home: Path, name: str) -> tuple[State, str | None]:
    if is_running(home, name):
        return "running", None
    attempts = list_attempts(home, name)
    if not attempts:
        return "new", None
    last = attempts[-1]
    if last.state is None:
        if is_running(home, name):  # it started since the lock was first looked at
            return "running", None
        last = list_attempts(home, name)[-1]  # or it has ended since
    if last.state is None:
        return "crashed", f"process {last.pid} ended without a word: killed, or the machine went down"
    return last.state, last.error


def _is_update(stage: Place) -> bool:
    return stage.iteration is not None and "Policy" in stage.outputs.values()


def _last_iteration(stages: Iterable[Place]) -> int:
    return max((stage.iteration for stage in stages if stage.iteration is not None), default=0)


def _newest_policy(store: Store, published: list[Place]) -> Policy | None:
    """The policy of the last stage, in plan order, that published one."""
    for stage in reversed(published):
        for output, record in stage.outputs.items():
            rows = store.read(stage.key, output, Policy) if record == "Policy" else []
            if rows:
                return rows[-1]
    return None
