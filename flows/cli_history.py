"""Commands that go on from a run, compare runs, and clean up behind them."""

from typing import Annotated

import typer

from flows.terminal import AllOption, DryRunOption, JsonOption, NameOption, SetOption


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
