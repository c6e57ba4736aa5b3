"""Flow runs that Prefect still shows as running although their process is dead are marked Crashed, with the cause.

Nobody tells a server that a process was killed. Whoever starts next looks: a flow run carries the tags of its home and
of its run, and the lock of the run says whether a process is at work on it.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from cgrpo_core.ids import digest
from storage.attempts import is_running, list_attempts, run_directory

OPEN = [StateType.RUNNING.value, StateType.PENDING.value, StateType.CANCELLING.value]
PAGE = 200
STARTING = timedelta(minutes=2)


def tags_of(home: Path, run: str) -> set[str]:
    """Return the tags that tell which flow runs belong to a run of this home."""
    return {f"run:{run}", _home_tag(home)}


def claim_flow_run(home: Path, run: str, flow_run: UUID) -> int:
    """Tag this process's flow run, and mark those that dead processes left open; return how many. Hold the RunLock."""
    with get_client(sync_client=True) as client:
        marked = 0
        for stale in _open_flow_runs(client, home):
            name = next((tag.removeprefix("run:") for tag in stale.tags if tag.startswith("run:")), "")
            mine = name == run and stale.id != flow_run
            if mine or (name != run and not _may_be_starting(stale) and _is_dead(home, name)):
                _mark(client, stale, _cause(home, name))
                marked += 1
        client.update_flow_run(flow_run, tags=sorted(tags_of(home, run)))
    return marked


def _home_tag(home: Path) -> str:
    return f"home:{digest(str(home.resolve()))[:12]}"


def _open_flow_runs(client: SyncPrefectClient, home: Path) -> list[FlowRun]:
    wanted = FlowRunFilter.model_validate({"tags": {"all_": [_home_tag(home)]}, "state": {"type": {"any_": OPEN}}})
    return list(client.read_flow_runs(flow_run_filter=wanted, limit=PAGE))


def _may_be_starting(flow_run: FlowRun) -> bool:
    """Tell whether a flow run is so young that its process may not hold the lock of its run yet."""
    begun = flow_run.start_time or flow_run.expected_start_time
    return begun is None or datetime.now(UTC) - begun < STARTING


def _is_dead(home: Path, run: str) -> bool:
    """Tell whether no process works on a run: one that is no longer in the home has none either."""
    return not (run and run_directory(home, run).is_dir() and is_running(home, run))


def _cause(home: Path, run: str) -> str:
    attempts = list_attempts(home, run) if run and run_directory(home, run).is_dir() else []
    dead = [attempt for attempt in attempts if attempt.state is None and attempt.pid != os.getpid()]
    process = f"process {dead[-1].pid}" if dead else "its process"
    return f"{process} ended without a word: killed, or the machine went down; found at the next start"


def _mark(client: SyncPrefectClient, stale: FlowRun, cause: str) -> None:
    # The filter of task runs, other than that of flow runs, insists on being told that any name will do.
    of_the_run: Any = {"flow_run_id": {"any_": [stale.id]}, "state": {"type": {"any_": OPEN}, "name": None}}
    for task_run in client.read_task_runs(task_run_filter=TaskRunFilter.model_validate(of_the_run), limit=PAGE):
        client.set_task_run_state(task_run.id, Crashed(message=cause), force=True)
    client.set_flow_run_state(stale.id, Crashed(message=cause), force=True)
