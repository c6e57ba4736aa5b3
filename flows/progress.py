"""Progress of a run in the terminal: stages done of all, tokens, tokens a second, time left. It only reads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.summary import iteration_row, stages_of
from storage.artifacts import Store
from storage.compacted import manifest_states
from storage.plans import Plan
from storage.runs import Run, read_plan

POLL_S = 1.0
LOOKED_AT = 200  # of the stages that are not done yet, in plan order: a long run has thousands, and does the first ones


@contextmanager
def live_progress(home: Path, run: Run) -> Iterator[None]:
    """Show the progress of a run on stderr until the block ends; without a terminal, a line for each iteration."""
    import ray  # noqa: F401 (here, by the main thread: two threads that import it at once find it half made)

    plan, store, done = read_plan(home, run.name), Store(home), threading.Event()
    console = Console(stderr=True)
    watch = threading.Thread(target=_watch, args=(plan, store, console, done), name="progress", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join(timeout=5)


def _watch(plan: Plan, store: Store, console: Console, done: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    there = manifest_states(store.home, [stage.key for stage in plan.stages])
    waiting = [stage for stage in plan.stages if stage.key not in there]
    told: set[int] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=len(plan.stages), figures="")
        while True:
            last = done.is_set()
            done_since = {stage.key for stage in waiting[:LOOKED_AT] if store.find(stage.key) is not None}
            waiting = [stage for stage in waiting if stage.key not in done_since]
            current = waiting[0] if waiting else plan.stages[-1]
            progress.update(
                bar,
                completed=len(plan.stages) - len(waiting),
                description=f"{current.label}",
                figures=_sampling_figures(),
            )
            _tell_finished(plan, store, {stage.iteration or 0 for stage in waiting}, told, progress.console)
            if last:
                return
            done.wait(POLL_S)


def _tell_finished(plan: Plan, store: Store, open_iterations: set[int], told: set[int], console: Console) -> None:
    iterations = {stage.iteration or 0 for stage in plan.stages}
    for iteration in sorted(iterations - open_iterations - told):
        row = iteration_row(store, stages_of(plan, iteration))
        names = ("reward_mean", "accuracy", "refine_refinements", "status", "loss", "tokens_per_second", "seconds")
        figures = ", ".join(f"{name} {_short(row[name])}" for name in names if row.get(name) is not None)
        console.print(f"iteration {iteration} of {max(iterations)}: {figures}", highlight=False, markup=False)
        told.add(iteration)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _sampling_figures() -> str:
    """Ask the samplers how far they are; nothing is shown while none is there to answer."""
    from tasks.engines.lease import sampling_progress

    now = sampling_progress()
    return f"{now['tokens']} tokens, {now['tokens'] / now['seconds']:.0f}/s" if now and now["seconds"] else ""
