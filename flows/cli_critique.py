"""The command that asks what critiques cost."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import JsonOption, RunArgument


def critique_cost(
    run: RunArgument = None,
    as_json: JsonOption = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="Take prices from this declaration, not from the run's own.")
    ] = None,
) -> None:
    """What the critiques of a run took, what they cost, and what they turned right and wrong."""
    from flows.critique_cost import print_critique_cost

    print_critique_cost(run, as_json=as_json, prices_file=file)
