"""Commands that check what training rests on: the verifier's verdicts, and problems that are in a benchmark too."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import JsonOption


def verifier(
    cases: Annotated[Path, typer.Option("--cases", help="JSON Lines with gold, pred and expected.")],
    core: Annotated[bool, typer.Option("--core", help="Only rows with `core: true`.")] = False,
    as_json: JsonOption = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that judge.")] = 1,
) -> None:
    """Compare the verifier's verdicts with known ones; print each disagreement and the share of agreement."""
    from flows.checks import check_verifier

    check_verifier(cases, core=core, workers=workers, as_json=as_json)


def decontaminate(
    train: Annotated[Path, typer.Argument(help="Problems to train on: .jsonl or .parquet.")],
    bench: Annotated[list[Path], typer.Argument(help="Files of benchmarks.")] = [],  # noqa: B006
    against: Annotated[list[Path], typer.Option("--against", help="A benchmark; may be given again.")] = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Print which problems are in a benchmark too: by their whole question, or by 13 words in a row."""
    from flows.checks import check_overlap

    check_overlap(train, [*against, *bench], as_json=as_json)
