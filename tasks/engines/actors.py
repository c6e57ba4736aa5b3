"""Named Ray actors: find, ask and end them. Ray's errors become the engine's own here, and nowhere else."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.engines.deadlines import Pulse, end_process, process_of
from tasks.engines.faults import EngineLost

NAMESPACE = "cgrpo"
INFO = "info"  # a concurrency group of its own: questions are answered while all other threads are at work
GRACE_SECONDS = 60.0
POLITE_SECONDS = 5.0


def find_actor(name: str) -> Any | None:
    """Return the actor of that name, or None. It may be dying: only a call tells."""
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def call_all(calls: Mapping[str, Any], pulse: Pulse) -> list[Any]:
    """Return the answers of calls under way (actor name -> object reference), in their order.

    The first error is raised at once, as it was raised in the actor; an actor that died is an EngineLost that names it,
    one that `pulse` found without progress an EngineHung.
    """
    import ray

    names = {reference: name for name, reference in calls.items()}
    waiting = list(names)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=pulse.poll_s)
        if done:
            answer(names[done[0]], done[0])
        pulse.check([names[reference] for reference in waiting])
    return ray.get(list(names)) if names else []


def answer(name: str, reference: Any, timeout: float | None = None) -> Any:
    """Return the answer of one call. Raises what the actor raised, or EngineLost."""
    import ray

    try:
        return ray.get(reference, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from None
    except (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError) as error:
        raise EngineLost(f"the engine {name} is gone: {str(error).strip().splitlines()[0]}") from None


def stop_actors(names: Sequence[str]) -> None:
    """End actors, and return when their names are free. Raises TimeoutError when one does not go.

    A hung process does not hear Ray: after POLITE_SECONDS it is killed by its id.
    """
    import ray

    found = {name: actor for name in names if (actor := find_actor(name)) is not None}
    processes = {name: process_of(actor) for name, actor in found.items()}
    for actor in found.values():
        ray.kill(actor, no_restart=True)
    began = time.monotonic()
    while left := [name for name in names if find_actor(name) is not None]:
        if time.monotonic() - began > POLITE_SECONDS:
            for name in left:
                end_process(processes.pop(name, None))
        if time.monotonic() - began > GRACE_SECONDS:
            raise TimeoutError(f"{', '.join(names)} did not end within {GRACE_SECONDS:.0f} s")
        time.sleep(0.05)
