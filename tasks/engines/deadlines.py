"""A hung engine is noticed by a deadline, killed by its process id, and reported as lost, so that the stage is retried.

A process that is stopped, or sits in a lock, keeps its Ray actor alive: no call to it ever fails. So whoever waits for
an answer also asks, in the actor's own group for questions, how far it is. The deadline is of progress, not of the
whole call: an update may take hours, as long as its process answers; sampling, as long as tokens come.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cgrpo_core.errors import UserError
from tasks.engines.faults import EngineHung

POLL_S = 2.0
DEADLINE_S = 300.0


@dataclass(slots=True)
class Pulse:
    """Watches actors while a caller waits for them.

    ask: actor -> reference of a question that a working actor answers at once. counts: answer -> what must change from
    time to time for the actor to be at work; None: that it answers is enough. deadline_s: how long without that.
    """

    actors: Mapping[str, Any]
    ask: Callable[[Any], Any]
    deadline_s: float = DEADLINE_S
    counts: Callable[[Any], object] | None = None
    _asked: dict[str, Any] = field(default_factory=dict)
    _seen: dict[str, object] = field(default_factory=dict)
    _alive_at: dict[str, float] = field(default_factory=dict)

    @property
    def poll_s(self) -> float:
        """How often to look."""
        return min(POLL_S, self.deadline_s / 4)

    def check(self, names: Sequence[str]) -> None:
        """Look at these actors; kill the first one that made no progress for too long, and raise EngineHung for it."""
        now = time.monotonic()
        for name in names:
            if self._moved(name) or name not in self._alive_at:
                self._alive_at[name] = now
            elif now - self._alive_at[name] > self.deadline_s:
                killed = kill_process(self.actors[name])
                raise EngineHung(
                    f"the engine {name} made no progress for {self.deadline_s:g} s: "
                    + (f"its process {killed} was killed" if killed else "its process is on another machine, or gone")
                )

    def _moved(self, name: str) -> bool:
        import ray

        asked = self._asked.get(name)
        if asked is None:
            self._asked[name] = self.ask(self.actors[name])
            return False
        if not ray.wait([asked], timeout=0)[0]:
            return False
        del self._asked[name]
        try:
            answer = ray.get(asked)
        except Exception:  # noqa: BLE001 - it has died or broken: the call that is waited for says so, and better
            return True
        before, self._seen[name] = self._seen.get(name), self.counts(answer) if self.counts else None
        return self.counts is None or before != self._seen[name]


def process_of(actor: Any) -> int | None:
    """Return the process id of an actor on this machine, as the cluster knows it; a hung actor cannot be asked."""
    import ray
    from ray._private.state import actors  # the public way to this table is an HTTP server, which a local Ray has not

    entry = actors(actor._actor_id.hex()) or {}
    here = entry.get("Address", {}).get("NodeID") == ray.get_runtime_context().get_node_id()
    pid = int(entry.get("Pid") or 0)
    return pid if here and pid > 0 and entry.get("State") == "ALIVE" else None


def kill_process(actor: Any) -> int | None:
    """SIGKILL the process of an actor and return its id; None if it is not on this machine or has ended."""
    return end_process(process_of(actor))


def end_process(pid: int | None) -> int | None:
    """SIGKILL a process, which a stopped one obeys too; return its id, or None if there is none."""
    try:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return pid


def check_deadline(where: str, value: object) -> None:
    """Raise UserError unless a declared `deadline_s` is a time."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{where}.deadline_s is {value!r}", "it is a number of seconds above 0")
