"""Runs as a user starts, resumes and serves them: the server around them, the progress beside them, the words after."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cgrpo_core.errors import UserError
from flows.home import data_home
from flows.server import prefect_server, start_server, stop_server
from storage.runs import Run, open_run

LOG_LEVEL = "WARNING"  # the progress line says what the log would; CGRPO_LOG_LEVEL=INFO shows both


def start(
    pipeline: str, *, profile: str | None, presets: list[str], sets: list[str], name: str | None, file: Path
) -> None:
    """Plan, freeze and carry out a new run. Exits 1 when a stage failed, 130 after Ctrl-C."""
    from flows.leaves import make_plan
    from storage.runs import create_run

    home = data_home()
    plan = make_plan(file, pipeline, profile=profile, presets=presets, sets=sets)
    options = {"file": str(file), "profile": profile, "presets": presets, "sets": sets}
    _carry_out(home, create_run(home, name=name, plan=plan, options=options))


def go_on(name: str | None) -> None:
    """Carry out what is left of a run."""
    home = data_home()
    _carry_out(home, open_run(home, name))


def _carry_out(home: Path, run: Run) -> None:
    began = time.monotonic()
    say(f"run {run.name}: starting")
    try:
        with _quiet_prefect(), prefect_server(home):
            from flows.progress import live_progress
            from flows.train import cgrpo

            say(f"run {run.name}: Prefect server ready after {time.monotonic() - began:.0f} s")
            with live_progress(home, run):
                cgrpo(pipeline=run.pipeline, name=run.name, resume=run.name)
    except KeyboardInterrupt:
        say(f"\ninterrupted; what is published stays\n\nhint: go on with: cgrpo resume {run.name}")
        sys.exit(130)
    except UserError:
        say(f"run {run.name} failed; what is published stays. When mended, go on with: cgrpo resume {run.name}")
        raise
    except Exception as error:
        from flows.submit import StageFailed

        if not isinstance(error, StageFailed):
            raise
        say(f"error: {error}")
        say(f"\nhint: {error.hint + '; then ' if error.hint else ''}go on with: cgrpo resume {run.name}")
        sys.exit(1)
    from flows.report import print_summary

    print_summary(home, run, seconds=time.monotonic() - began)


@contextmanager
def _quiet_prefect() -> Iterator[None]:
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", os.environ.get("CGRPO_LOG_LEVEL", LOG_LEVEL))
    yield


def serve_deployment(limit: int) -> None:
    """Serve cgrpo/train; runs start with `prefect deployment run cgrpo/train`."""
    home = data_home()
    with prefect_server(home) as url:
        from flows.train import cgrpo

        say(f"serving cgrpo/train; in another terminal:\n\n  export PREFECT_API_URL={url}")
        say("  prefect deployment run cgrpo/train --param pipeline=critique-grpo --param profile=cpu\n")
        cgrpo.serve(name="train", limit=limit, print_starting_message=False)


def show_ui(port: int) -> None:
    """Serve the Prefect UI of this home until Ctrl-C."""
    home = data_home()
    process, url = start_server(home, port or None)
    try:
        say(f"Prefect UI: {url.removesuffix('/api')} (Ctrl-C ends it)")
        code = process.wait()
    finally:
        stop_server(process)
    if code:
        raise UserError("the Prefect server ended", f"its log is {home / 'prefect' / 'server.log'}; is the port free?")


def handle_engines(stop: bool) -> None:
    """List or end the engines of the cluster that RAY_ADDRESS names."""
    if not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "RAY_ADDRESS is not set", "engines on a local Ray end with their run; set RAY_ADDRESS to a cluster"
        )
    from tasks.engines.lease import list_engines, stop_engines

    from flows.cluster import ray_cluster

    with ray_cluster():
        names = list_engines()
        if stop:
            stop_engines(names)
        for name in names:
            print(f"{name}{' ended' if stop else ''}")


def say(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr, flush=True)
