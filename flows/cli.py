"""The `cgrpo` command: parse, call, print, exit code. Heavy imports come after parsing, so that --help is quick.

Exit codes: 0 done, 1 a run or a check failed, 2 a mistake in the input, 130 interrupted. Data goes to stdout, all
else to stderr.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cgrpo_core.errors import UserError
from flows.terminal import (
    DECLARATION,
    FileOption,
    JsonOption,
    NameOption,
    Pipeline,
    PresetOption,
    ProfileOption,
    RunArgument,
    SetOption,
    fail,
)

app = typer.Typer(
    name="cgrpo",
    help="Train language models with Critique-GRPO, and ask in SQL about every token that moved the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
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


@app.command()
def resume(run: RunArgument = None) -> None:
    """Go on with a run: what is published is reused, the rest is run."""
    from flows.runner import go_on

    go_on(run)


@app.command()
def plan(
    pipeline: Pipeline,
    profile: ProfileOption = "cpu",
    preset: PresetOption = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    name: NameOption = None,
    file: FileOption = DECLARATION,
    as_json: JsonOption = False,
) -> None:
    """Print the stages with their keys, and whether each would run or be reused. Nothing is run."""
    from flows.report import print_plan

    print_plan(file, pipeline, profile=profile, presets=preset, sets=set_, as_json=as_json)


@app.command()
def model(
    pipeline: Pipeline,
    profile: ProfileOption = "cpu",
    set_: SetOption = [],  # noqa: B006
    file: FileOption = DECLARATION,
) -> None:
    """Get the base model that a pipeline starts from, converting it once if need be; print its directory."""
    from flows.runner import get_model

    get_model(file, pipeline, profile=profile, sets=set_)


@app.command()
def status(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Print where a run stands."""
    from flows.report import print_status

    print_status(run, as_json=as_json)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="A query over the views; `cgrpo sql 'show tables'` lists them.")],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    run: Annotated[list[str], typer.Option("--run", help="Only these runs; by default all.")] = [],  # noqa: B006
) -> None:
    """Ask about everything that was sampled, judged, said and learnt. Read-only."""
    from flows.report import print_query

    print_query(query, runs=run or None, form="json" if as_json else "csv" if as_csv else "table")


@app.command()
def serve(limit: Annotated[int, typer.Option("--limit", help="How many runs may go on at once.")] = 1) -> None:
    """Serve the deployment cgrpo/train from this process, until Ctrl-C."""
    from flows.runner import serve_deployment

    serve_deployment(limit)


@app.command()
def ui(port: Annotated[int, typer.Option("--port", help="Loopback port; 0 takes a free one.")] = 4200) -> None:
    """Show the Prefect UI over the runs that are kept here, until Ctrl-C."""
    from flows.runner import show_ui

    show_ui(port)


@app.command()
def engines(stop: Annotated[bool, typer.Option("--stop", help="End them.")] = False) -> None:
    """List the engines on the Ray cluster that RAY_ADDRESS names, or end them."""
    from flows.runner import handle_engines

    handle_engines(stop)


@app.command()
def golden(directory: Annotated[Path, typer.Argument(help="A folder of vector files (*.json).")]) -> None:
    """Check the numeric core against golden vectors."""
    from flows.report import check_golden

    if not check_golden(directory):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; a user's mistake shows a message and a hint, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        fail(error.message, error.hint)
        sys.exit(2)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 (sorted below: only click's own are shown without a traceback)
        code = _click_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def _click_error(error: Exception) -> int:
    """Show the parser's own complaints as ours; anything else is a fault of the program and keeps its traceback."""
    if isinstance(error, typer.Abort):
        return 130
    if not hasattr(error, "format_message"):  # what all of the parser's errors have, whose class typer keeps private
        raise error
    fail(error.format_message(), f"{getattr(getattr(error, 'ctx', None), 'command_path', 'cgrpo')} --help")
    return 2
