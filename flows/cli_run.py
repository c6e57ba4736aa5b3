"""Commands that plan, run and watch."""

from typing import Annotated

import typer

from flows.terminal import (
    DECLARATION,
    AllOption,
    FileOption,
    JsonOption,
    NameOption,
    Pipeline,
    PresetOption,
    ProfileOption,
    RunArgument,
    SetOption,
)


def run(
    pipeline: Pipeline,
    profile: ProfileOption = "cpu",
    preset: PresetOption = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    name: NameOption = None,
    file: FileOption = DECLARATION,
) -> None:
    """Train: plan a pipeline, freeze the plan as a run, and carry it out."""
    from flows.runner import start

    start(pipeline, profile=profile, presets=preset, sets=set_, name=name, file=file)


def resume(
    run: RunArgument = None,
    accept: Annotated[list[str], typer.Option("--accept", help="A failed gate to let pass; may be given again.")] = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Go on with a run: what is published is reused, the rest is run."""
    from flows.runner import go_on

    go_on(run, accept=accept, as_json=as_json)


def plan(
    pipeline: Pipeline,
    profile: ProfileOption = "cpu",
    preset: PresetOption = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    name: NameOption = None,
    file: FileOption = DECLARATION,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print which stages would run or be reused and why, what they should take, and whether the engines fit."""
    from flows.report import print_plan

    print_plan(file, pipeline, profile=profile, presets=preset, sets=set_, every=every, as_json=as_json)


def model(
    pipeline: Pipeline,
    profile: ProfileOption = "cpu",
    set_: SetOption = [],  # noqa: B006
    file: FileOption = DECLARATION,
) -> None:
    """Get the base model that a pipeline starts from, converting it once if need be; print its directory."""
    from flows.runner import get_model

    get_model(file, pipeline, profile=profile, sets=set_)


def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Print where a run stands."""
    from flows.report import print_status

    print_status(run, as_json=as_json)


def serve(limit: Annotated[int, typer.Option("--limit", help="How many runs may go on at once.")] = 1) -> None:
    """Serve the deployments cgrpo/train, cgrpo/resume and the others from this process, until Ctrl-C."""
    from flows.deployments import serve_deployments

    serve_deployments(limit)


def ui(port: Annotated[int, typer.Option("--port", help="Loopback port; 0 takes a free one.")] = 4200) -> None:
    """Show the Prefect UI over the runs that are kept here, until Ctrl-C."""
    from flows.runner import show_ui

    show_ui(port)


def engines(stop: Annotated[bool, typer.Option("--stop", help="End them.")] = False) -> None:
    """List the engines on the Ray cluster that RAY_ADDRESS names, or end them."""
    from flows.runner import handle_engines

    handle_engines(stop)
