"""Prefect's task runner on Ray, which sends workers the function that runs a task once.

prefect-ray 0.4 makes a remote function anew for each task. To Ray each is another one: it is pickled, stored by the
control store and kept by every worker that ran it, which cost a run of 100 iterations 20 MiB, and never ended.
"""

from collections.abc import Callable
from typing import Any

import ray
from prefect_ray import task_runners

Function = Callable[..., Any]


class _RayWithMemory:
    """The module `ray`, but for `remote`, which answers the same question with the same remote function."""

    def __init__(self) -> None:
        self._made: dict[tuple[Function, tuple[tuple[str, Any], ...]], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def remote(self, **options: Any) -> Callable[[Function], Any]:
        """Return the decorator that ray.remote returns for these options."""

        def decorate(function: Function) -> Any:
            key = (function, tuple(sorted(options.items())))
            if key not in self._made:
                self._made[key] = ray.remote(**options)(function)
            return self._made[key]

        return decorate


# What stands under that name in prefect-ray's module is what its task runner asks.
task_runners.ray = _RayWithMemory()  # type: ignore[attr-defined]
RayTaskRunner = task_runners.RayTaskRunner
