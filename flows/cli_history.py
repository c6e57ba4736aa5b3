"""Commands that go on from a run, compare runs, and clean up behind them."""

from typing import Annotated

import typer

from flows.terminal import AllOption, DryRunOption, JsonOption, NameOption, RunArgument, SetOption


def rerun(
    run: Annotated[str, typer.Argument(help="The run to go on from.")],
    from_: Annotated[str, typer.Option("--from", help="The stage to do again, with all that depends on it.")],
    iteration: Annotated[
        int | None, typer.Option("--iteration", help="From this iteration on; by default all.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="The last stage that is wanted.")] = None,
    set_: SetOption = [],  # noqa: B006
    reseed: Annotated[int | None, typer.Option("--reseed", help="Another seed for all that is done again.")] = None,
    name: NameOption = None,
    dry_run: DryRunOption = False,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do a stage of a run and what depends on it again, as a new run that shares the rest."""
    from flows.history import plan_rerun
    from flows.home import data_home
    from flows.runner import start_derived

    derived = plan_rerun(data_home(), run, from_, iteration=iteration, to=to, sets=set_, reseed=reseed)
    start_derived(derived, name=name, dry_run=dry_run, every=every, as_json=as_json)


def fork(
    run: Annotated[str, typer.Argument(metavar="RUN@ITERATION", help="The run, and the last iteration to keep.")],
    set_: SetOption = [],  # noqa: B006
    name: NameOption = None,
    dry_run: DryRunOption = False,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on from an iteration of a run under other settings, as a new run that shares what came before."""
    from flows.history import plan_fork
    from flows.home import data_home
    from flows.runner import start_derived

    derived = plan_fork(data_home(), run, set_)
    start_derived(derived, name=name, dry_run=dry_run, every=every, as_json=as_json)


def explain(
    run: Annotated[str, typer.Argument(help="A run.")],
    stage: Annotated[str, typer.Argument(metavar="STAGE[@ITERATION]", help="A stage of it, as update@2.")],
    other: Annotated[str | None, typer.Argument(help="Another run, to compare with.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a stage's key is made of; with another run, what differs and where that begins."""
    from flows.explain import explain as print_explanation
    from flows.home import data_home

    print_explanation(data_home(), run, stage, other, as_json=as_json)


def diff(
    run: Annotated[str, typer.Argument(help="A run.")],
    other: Annotated[str, typer.Argument(help="Another run.")],
    tolerance: Annotated[float, typer.Option("--tolerance", help="Numbers that differ by no more are the same.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Print the first artifact in which two runs differ, row by row and field by field."""
    from flows.diff_report import print_diff
    from flows.home import data_home

    print_diff(data_home(), run, other, tolerance=tolerance, as_json=as_json)


def gc(dry_run: DryRunOption = False, every: AllOption = False, as_json: JsonOption = False) -> None:
    """Remove what no run refers to, superseded weights, checkpoints beyond checkpoint.keep, and leftovers."""
    from flows.cleaning import clean
    from flows.home import data_home

    clean(data_home(), dry_run=dry_run, every=every, as_json=as_json)


def compact(run: RunArgument = None, as_json: JsonOption = False) -> None:
    """Copy the complete iterations of a run into few large files, which questions read; the artifacts stay."""
    from flows.cleaning import compact_run
    from flows.home import data_home

    compact_run(data_home(), run, as_json=as_json)
