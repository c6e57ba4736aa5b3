"""A Prefect server or a Ray cluster that goes away in the middle of a run, in words. Imports neither by itself."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from cgrpo_core.errors import UserError

# module of the error's class -> what went away, and the way out
SERVICES = {
    "ray": ("the Ray cluster went away", "start it again, or unset RAY_ADDRESS to use a local Ray"),
    "httpx": ("the Prefect server does not answer any more", "start it again, or unset PREFECT_API_URL"),
    "httpcore": ("the Prefect server does not answer any more", "start it again, or unset PREFECT_API_URL"),
}


class ServiceLost(UserError):
    """A server that the run needs went away; what was published stays."""

    exit_code: ClassVar[int] = 1


@contextmanager
def outages_named() -> Iterator[None]:
    """Raise ServiceLost for an error of Ray or of the connection to Prefect that leaves the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Ray and Prefect raise many types; one that is no outage rises as it is
        lost = _service_of(error)
        if lost is None:
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ServiceLost(f"{lost[0]}: {said}", lost[1]) from error


def _service_of(error: BaseException | None) -> tuple[str, str] | None:
    """Return the service of an error or of what caused it; errors that a remote task raised by itself are not meant."""
    while error is not None:
        module = type(error).__module__.split(".")[0]
        ray = sys.modules.get("ray.exceptions")
        from_a_task = ray is not None and isinstance(error, ray.RayTaskError)
        if module in SERVICES and not from_a_task:
            return SERVICES[module]
        error = error.__cause__
    return None
