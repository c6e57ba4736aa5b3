"""Commands that prove what a run claims: everything checked, updates taken again, texts judged again."""

from typing import Annotated

import typer

from flows.terminal import DECLARATION, FileOption, JsonOption, RunArgument, SetOption


def audit(
    run: RunArgument = None,
    replay: Annotated[bool, typer.Option("--replay", help="Take every update again, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every byte, key and link of a run, compute again what can be, and print a certificate."""
    from flows.certificate import print_certificate

    if not print_certificate(run, replay=replay, as_json=as_json):
        raise typer.Exit(1)


def replay(
    run: RunArgument = None,
    first: Annotated[int | None, typer.Option("--from", min=1, help="First iteration; by default 1.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Last iteration; by default the newest.")] = None,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Largest distance, over how far training moved; 0: equal digests."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Take the updates of a run again from its stored samples, and compare the weights one by one."""
    from flows.home import data_home
    from flows.replay import print_replay
    from storage.runs import open_run

    home = data_home()
    name = open_run(home, run).name
    if not print_replay(home, name, first=first, last=last, tolerance=tolerance, as_json=as_json):
        raise typer.Exit(1)


def regrade(
    run: RunArgument = None,
    verifier: Annotated[str | None, typer.Option("--verifier", help="By default the run's own, as it is now.")] = None,
    set_: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Judge every stored text of a run again, without any model: verdicts, advantages and updates that would change."""
    from flows.home import data_home
    from flows.regrade import print_regrade
    from storage.runs import open_run

    home = data_home()
    print_regrade(home, open_run(home, run).name, verifier=verifier, sets=set_, as_json=as_json)


def counterfactual(
    run: Annotated[str, typer.Argument(metavar="RUN@ITERATION", help="A run, and the iteration of its batch.")],
    preset: Annotated[str, typer.Option("--preset", help="Presets whose losses are compared, as grpo,dr_grpo.")],
    samples: Annotated[
        int, typer.Option("--samples", min=0, help="How many rows, the weightiest, are taken alone under each loss.")
    ] = 8,
    file: FileOption = DECLARATION,
    as_json: JsonOption = False,
) -> None:
    """Compare what several losses would make of one stored batch: loss, gradient norm, cosines, and each row's part."""
    from flows.counterfactual import print_counterfactual
    from flows.home import data_home

    presets = list(dict.fromkeys(name.strip() for name in preset.split(",") if name.strip()))
    print_counterfactual(data_home(), run, presets=presets, rows=samples, file=file, as_json=as_json)
