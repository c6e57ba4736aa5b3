"""A new run: planned and frozen, before anything costly has started. Imports no Prefect."""

from pathlib import Path

from flows.fit import estimate_memory, keep_estimate
from flows.leaves import make_plan
from storage.runs import Run, create_run


def new_run(
    home: Path, pipeline: str, *, profile: str | None, presets: list[str], sets: list[str], name: str | None, file: Path
) -> Run:
    """Plan and freeze a new run. Raises UserError, and then no run is there."""
    plan = make_plan(file, pipeline, profile=profile, presets=presets, sets=sets)
    options = {"file": str(file), "profile": profile, "presets": presets, "sets": sets}
    run = create_run(home, name=name, plan=plan, options=options)
    keep_estimate(home, run.name, estimate_memory(home, plan))
    return run
