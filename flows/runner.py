"""Runs as a user starts, resumes and serves them: the server around them, the progress beside them, the words after."""

import os
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cgrpo_core.errors import UserError
from flows.home import data_home
from flows.interrupts import interruptible
from flows.outages import outages_named
from flows.server import prefect_server, start_server, stop_server
from flows.terminal import dump_json, say
from storage.disk import disk_faults_named
from storage.runs import Run, open_run, run_state

if TYPE_CHECKING:
    from flows.history import Derived

EVALUATION = "evaluate"  # the pipeline of an evaluation, a run of its own (flows/evaluation_plan.py)
QUIET = "CRITICAL"


def start(
    pipeline: str, *, profile: str | None, presets: list[str], sets: list[str], name: str | None, file: Path
) -> None:
    """Plan, freeze and carry out a new run. Exits 1 when a stage failed, 130 after Ctrl-C."""
    from flows.new_run import new_run

    home = data_home()
    run = new_run(home, pipeline, profile=profile, presets=presets, sets=sets, name=name, file=file)
    _carry_out(home, run)


def evaluate(
    policy: str,
    benchmarks: list[str],
    *,
    samples: int | None,
    profile: str | None,
    sets: list[str],
    file: Path,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Evaluate a policy on benchmarks, or find that it was done, and print its figures."""
    from flows.evaluation_run import new_evaluation

    home = data_home()
    run = new_evaluation(home, policy, benchmarks, samples=samples, profile=profile, sets=sets, file=file)
    state = run_state(home, run.name)
    if state.state == "completed" and state.stages_published == state.stages_total:
        say(f"{run.name}: every stage is published already; nothing is computed")
    else:
        _carry_out(home, run, summary=False)
    from flows.evaluation_report import print_evaluation

    print_evaluation(home, run, plot=plot, as_json=as_json)


def get_model(file: Path, pipeline: str, *, profile: str | None, sets: list[str]) -> None:
    """Print the directory of the base model, converted or downloaded now if it is not cached."""
    from flows.plan import used_inputs
    from flows.resolve import resolve
    from tasks.models import resolve_model

    spec = resolve(file, pipeline, profile=profile, sets=sets)
    names = sorted({engine.model for engine in spec.engines.values()} & used_inputs(spec))
    for name in names:
        began = time.monotonic()
        directory = resolve_model(spec.inputs[name].model_dump(), data_home(), Path(spec.base_dir), progress=say)
        say(f"{name}: ready after {time.monotonic() - began:.0f} s")
        print(directory)


def go_on(name: str | None, *, accept: list[str], as_json: bool) -> None:
    """Carry out what is left of a run, past the failed gates that are accepted. Raises UserError for no such gate."""
    from flows.gates import declared_gates
    from flows.program import check_program
    from flows.spec_errors import nearest
    from storage.gates import accept_gates
    from storage.runs import RunLock, read_plan

    home = data_home()
    run = open_run(home, name)
    check_program(home, run.name)
    with RunLock(home, run.name):
        pass  # refused here, before a server is started, if another process has the run
    gates = declared_gates(read_plan(home, run.name)) if accept else {}
    for gate in accept:
        if gate not in gates:
            raise UserError(f"run {run.name} has no gate {gate!r}", nearest(gate, gates))
    if count := accept_gates(home, run.name, accept):
        say(f"{count} failed gates are accepted: {', '.join(accept)}")
    _carry_out(home, run, summary=not as_json)
    if as_json:
        dump_json(asdict(run_state(home, run.name)))


def start_derived(derived: "Derived", *, name: str | None, dry_run: bool, every: bool, as_json: bool) -> None:
    """Say what a fork or rerun would do; unless that was all, freeze it as a run and carry it out."""
    from flows.forecast import as_json as plain
    from flows.forecast import forecast
    from flows.history import freeze
    from flows.plan_report import print_forecast

    home = data_home()
    found = forecast(home, derived.plan, against=(derived.parent.name, derived.parent_plan))
    if as_json:
        dump_json({"parent": derived.parent.name, **derived.options, "notes": derived.notes, **plain(found)})
    else:
        print_forecast(found, every=every, file=None if dry_run else sys.stderr)
        for note in derived.notes:
            say(f"note: {note}")
    if not dry_run:
        _carry_out(home, freeze(home, derived, name), summary=not as_json)


def _carry_out(home: Path, run: Run, *, summary: bool = True) -> None:
    began = time.monotonic()
    go_on_with = f"go on with: cgrpo resume {run.name}"
    cluster = ExitStack()
    say(f"run {run.name}: starting (data under {home})")
    _say_what_is_reused(home, run)
    _quiet_console()
    try:
        ahead = partial(_start_ahead, home, run, cluster)
        with disk_faults_named(home), outages_named(), interruptible(), prefect_server(home, ahead), cluster:
            from prefect import tags

            from flows.progress import live_progress
            from flows.stale import tags_of
            from flows.train import cgrpo

            say(f"run {run.name}: Prefect server ready after {time.monotonic() - began:.0f} s")
            with live_progress(home, run), tags(*tags_of(home, run.name)):
                cgrpo(pipeline=run.pipeline, name=run.name, resume=run.name)
    except KeyboardInterrupt:
        say(f"\ninterrupted; what is published stays\n\nhint: {go_on_with}")
        sys.exit(130)
    except UserError as error:
        say(f"error: {error.message}\n\nhint: {error.hint + '; then ' if error.hint else ''}{go_on_with}")
        sys.exit(1)
    except BaseException:
        say(f"\nrun {run.name} broke off; what is published stays\n\nhint: {go_on_with}")
        raise
    if not summary:
        return
    if run.pipeline == EVALUATION:
        from flows.evaluation_report import print_evaluation

        print_evaluation(home, run)
        return
    from flows.report import print_summary

    print_summary(home, run, seconds=time.monotonic() - began)


def _start_ahead(home: Path, run: Run, cluster: ExitStack) -> None:
    """Import what a run needs and start its local Ray, both while the Prefect server starts."""
    import flows.train  # noqa: F401
    from flows.cluster import ray_cluster

    state = run_state(home, run.name)
    if os.environ.get("RAY_ADDRESS") or state.stages_published == state.stages_total:
        return
    with suppress(UserError):  # the run tries it again, and keeps what goes wrong then as the end of its attempt
        cluster.enter_context(ray_cluster())


def _say_what_is_reused(home: Path, run: Run) -> None:
    state = run_state(home, run.name)
    if state.stages_published:
        say(f"{state.stages_published} of {state.stages_total} stages are published already and are reused")
    if state.stages_published == state.stages_total and run.pipeline != EVALUATION:
        say("so nothing is left to do; train longer with --set run.iterations=N, or anew with --set run.seed=N")


def _quiet_console() -> None:
    """Keep Prefect's log in its UI, as the progress line says the same; CGRPO_LOG_LEVEL=INFO shows it here too."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", os.environ.get("CGRPO_LOG_LEVEL", QUIET))


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
    from flows.cluster import ray_cluster
    from tasks.engines.lease import list_engines, stop_engines

    with ray_cluster():
        names = list_engines()
        if stop:
            stop_engines(names)
        for name in names:
            print(f"{name}{' ended' if stop else ''}")
