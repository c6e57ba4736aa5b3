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
AllOption = Annotated[bool, typer.Option("--all", help="List every stage.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
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


def as_gib(size: float) -> str:
    """Return bytes as GiB, with as many digits as matter."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def as_duration(seconds: float) -> str:
    """Return seconds as `40 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
