"""Named Ray actors: find, ask and end them. Ray's errors become the engine's own here, and nowhere else."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.engines.faults import EngineLost

NAMESPACE = "cgrpo"
INFO = "info"  # a concurrency group of its own: questions are answered while all other threads are at work
GRACE_SECONDS = 60.0


def find_actor(name: str) -> Any | None:
    """Return the actor of that name, or None. It may be dying: only a call tells."""
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def call_all(calls: Mapping[str, Any]) -> list[Any]:
    """Return the answers of calls under way (actor name -> object reference), in their order.

    The first error is raised at once, as it was raised in the actor; an actor that died is an EngineLost that names it.
    """
    import ray

    names = {reference: name for name, reference in calls.items()}
    waiting = list(names)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        answer(names[done[0]], done[0])
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
    """End actors, and return when their names are free. Raises TimeoutError when one does not go."""
    import ray

    for name in names:
        actor = find_actor(name)
        if actor is not None:
            ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + GRACE_SECONDS
    while any(find_actor(name) is not None for name in names):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(names)} did not end within {GRACE_SECONDS:.0f} s")
        time.sleep(0.05)
