"""The `cgrpo` command: parse, call, print, exit code. Heavy imports come after parsing, so that --help is quick.

Exit codes: 0 done, 1 a run or a check failed, 2 a mistake in the input, 130 interrupted. Data goes to stdout, all
else to stderr.
"""

import sys

import typer

from cgrpo_core.errors import UserError
from flows import cli_ask, cli_check, cli_evaluate, cli_history, cli_proof, cli_run
from flows.cli_critique import critique_cost
from flows.terminal import fail

app = typer.Typer(
    name="cgrpo",
    help="Train language models with Critique-GRPO, and ask in SQL about every token that moved the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# In the order of --help.
COMMANDS = (
    *(cli_run.run, cli_run.resume, cli_run.plan, cli_run.model, cli_run.status),
    *(cli_evaluate.evaluate, cli_evaluate.benchmarks),
    critique_cost,
    *(cli_history.rerun, cli_history.fork, cli_history.explain, cli_history.diff),
    *(cli_history.gc, cli_history.compact),
    *(cli_proof.audit, cli_proof.replay, cli_proof.regrade, cli_proof.counterfactual),
    *(cli_ask.sql, cli_run.serve, cli_run.ui, cli_run.engines, cli_ask.golden),
    *(cli_check.verifier, cli_check.decontaminate),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command; a user's mistake shows a message and a hint, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        fail(error.message, error.hint)
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 (sorted below: only click's own are shown without a traceback)
        code = _click_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def _disk_fault(error: OSError) -> UserError | None:
    from flows.home import data_home
    from storage.disk import disk_fault

    return disk_fault(error, data_home())


def _click_error(error: Exception) -> int:
    """Show the parser's own complaints as ours; anything else is a fault of the program and keeps its traceback."""
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, OSError) and (fault := _disk_fault(error)):
        fail(fault.message, fault.hint)
        return fault.exit_code
    if not hasattr(error, "format_message"):  # what all of the parser's errors have, whose class typer keeps private
        raise error
    fail(error.format_message(), f"{getattr(getattr(error, 'ctx', None), 'command_path', 'cgrpo')} --help")
    return 2
