"""Commands that evaluate policies on benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import DECLARATION, FileOption, JsonOption, SetOption


def evaluate(
    policy: Annotated[str, typer.Option("--policy", help="RUN, its newest policy, or RUN@3, after iteration 3.")],
    benchmarks: Annotated[str, typer.Option("--benchmarks", help="Names of the catalogue, as math500,aime24.")],
    samples: Annotated[
        int | None, typer.Option("--samples", help="For pass@k: samples a problem; 0 for greedy answers alone.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="The machine; by default that of the run.")] = None,
    set_: SetOption = [],  # noqa: B006
    file: FileOption = DECLARATION,
    plot: Annotated[Path | None, typer.Option("--plot", help="Where to draw; by default in the run's folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a policy on benchmarks, shard by shard; what is published is reused."""
    from flows.runner import evaluate as run_evaluation

    run_evaluation(
        policy, [benchmarks], samples=samples, profile=profile, sets=set_, file=file, plot=plot, as_json=as_json
    )


def benchmarks(
    set_: SetOption = [],  # noqa: B006
    file: FileOption = DECLARATION,
    as_json: JsonOption = False,
) -> None:
    """Print the catalogue of benchmarks: source, form, prompt, verifier, licence."""
    from flows.evaluation_report import print_catalogue

    print_catalogue(file, sets=set_, as_json=as_json)
