"""Commands that ask what is stored, and check what is computed."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import JsonOption


def sql(
    query: Annotated[str, typer.Argument(help="A query over the views; `cgrpo sql 'show tables'` lists them.")],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    run: Annotated[list[str], typer.Option("--run", help="Only these runs; by default all.")] = [],  # noqa: B006
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds after which the query is interrupted.")] = 60.0,
) -> None:
    """Ask about everything that was sampled, judged, said and learnt. Read-only."""
    from flows.report import print_query

    print_query(query, runs=run or None, form="json" if as_json else "csv" if as_csv else "table", deadline_s=deadline)


def golden(directory: Annotated[Path, typer.Argument(help="A folder of vector files (*.json).")]) -> None:
    """Check the numeric core against golden vectors."""
    from flows.report import check_golden

    if not check_golden(directory):
        raise typer.Exit(1)
