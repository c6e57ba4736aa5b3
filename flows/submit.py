"""From plan to Prefect: each stage becomes a task run on Ray. The one file that knows both."""

from dataclasses import asdict
from importlib import import_module
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.futures import PrefectFuture
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture

from cgrpo_core.errors import UserError
from storage.plans import StagePlan
from tasks.engines.lease import list_engines

# A stage mostly waits for an engine, so it claims little: two whole-CPU tasks on two CPUs would starve each other.
DEFAULT_CPUS = 0.1
RETRY_DELAY_S = 2
LOOK_S = 10.0
NOT_THE_CAUSE = {"NotReady", "Pending"}  # states of tasks whose upstream failed


def submit_stages(
    stages: list[StagePlan], *, run: str, home: str, base_dir: str
) -> list[tuple[StagePlan, PrefectFuture]]:
    """Submit the stages in plan order; edges inside the section are futures, edges from outside are in the store."""
    futures: dict[str, PrefectFuture] = {}
    for plan in stages:
        upstream = [futures[ref.key] for refs in plan.inputs.values() for ref in refs if ref.key in futures]
        # No tags: for each new set of them Prefect asks its server whether a limit goes with it, before a task starts;
        # when two tasks ask at once, one of them waits for two seconds. The flow runs have the tags.
        cpus = plan.resources.get("num_cpus", DEFAULT_CPUS)
        with TagsContext(current_tags=set()), remote_options(num_cpus=cpus):
            futures[plan.key] = _task(plan, run).submit(
                plan=asdict(plan), home=home, base_dir=base_dir, upstream=upstream
            )
    return [(plan, futures[plan.key]) for plan in stages]


def wait_for_all(submitted: list[tuple[StagePlan, PrefectFuture]]) -> None:
    """Wait for every stage, then raise what the first failed one in plan order raised: its cause, not its echoes."""
    for _, future in submitted:
        _wait(future)
    failed = [(plan, future.state) for plan, future in submitted if not future.state.is_completed()]
    causes = [(plan, state) for plan, state in failed if state.name not in NOT_THE_CAUSE]
    for plan, state in causes or failed:
        cause = _user_error(state)
        message = cause.message if cause else state.message or state.name or "failed"
        raise StageFailed(f"stage {plan.label}: {message}", cause.hint if cause else "")


def _wait(future: PrefectRayFuture) -> None:
    """Wait for one stage. Raises Ray's error when the cluster is gone or another stands in its place.

    A future of a cluster whose head was replaced is never resolved and never fails: only a question to the head tells.
    """
    import ray

    # Not by the state of the task run: that of a stage whose upstream failed is never final.
    while not ray.wait([future.wrapped_future], timeout=LOOK_S)[0]:
        list_engines()
    future.wait()


class StageFailed(UserError):
    """A stage of the run failed for good."""


def _user_error(state: State[Any]) -> UserError | None:
    error = state.result(raise_on_failure=False)
    return error if isinstance(error, UserError) else None


def _task(plan: StagePlan, run: str) -> Task[..., Any]:
    module, _, name = plan.task.partition(":")
    task: Task[..., Any] = getattr(import_module(module), name)
    return task.with_options(
        name=plan.stage,
        task_run_name=f"{run} {plan.label}",
        retries=plan.retries,
        retry_delay_seconds=RETRY_DELAY_S,
        retry_condition_fn=worth_retrying,
    )


def worth_retrying(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether another attempt could end otherwise: a user's mistake stays one."""
    return _user_error(state) is None
