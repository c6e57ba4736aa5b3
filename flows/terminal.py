"""What every command shares: words to stderr, JSON to stdout, and the options that mean the same everywhere."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Pipeline = Annotated[str, typer.Argument(help="A pipeline of pipelines.yaml, such as critique-grpo or grpo.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="The machine: cpu, 1-gpu, 8-gpu.")]
PresetOption = Annotated[list[str], typer.Option("--preset", help="A choice of method; may be given again.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="One parameter, as rollout.group_size=4; may be given again.")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run; by default pipeline and time.")]
FileOption = Annotated[Path, typer.Option("--file", help="The declaration.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[str | None, typer.Argument(help="A run; by default the newest.")]
DECLARATION = Path("pipelines.yaml")


def fail(message: str, hint: str = "") -> None:
    """Print a message, and a hint after a blank line, to stderr."""
    say(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""))


def say(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr, flush=True)


def dump_json(value: object) -> None:
    """Print a value as JSON to stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
