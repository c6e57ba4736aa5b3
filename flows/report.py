"""What commands print: plans, states, query results, the summary of a run, the golden check."""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cgrpo_core.errors import UserError
from flows.engine_figures import figures_of_iteration
from flows.engine_figures import lines as engine_lines
from flows.fit import memory_figures
from flows.home import data_home
from flows.leaves import make_plan
from flows.summary import iteration_row, stages_of
from flows.terminal import as_gib, dump_json, fail, say
from flows.time_bar import draw, last_iteration
from storage.artifacts import Store
from storage.runs import Run, read_places, read_plan, run_state

Form = Literal["table", "json", "csv"]

NEXT_QUERY = (
    "select iteration, count(*) as responses, avg(reward) as reward from responses "
    "join verdicts using (run, iteration) where subject_id = response_id group by all order by all"
)


def print_plan(
    file: Path, pipeline: str, *, profile: str | None, presets: list[str], sets: list[str], every: bool, as_json: bool
) -> None:
    """Print what would run and what would be reused, and why; what it should take; whether the engines fit."""
    from flows.forecast import as_json as plain
    from flows.forecast import forecast
    from flows.plan_report import print_forecast

    plan = make_plan(file, pipeline, profile=profile, presets=presets, sets=sets)
    found = forecast(data_home(), plan)
    if as_json:
        dump_json(plain(found))
    else:
        print_forecast(found, every=every)


def print_status(name: str | None, *, as_json: bool) -> None:
    """Print the state of a run."""
    state = run_state(data_home(), name)
    values = {
        "run": state.name,
        "state": state.state,
        "iteration": state.iteration,
        "iterations": state.iterations,
        "policy_version": state.policy_version,
        "weights_sha256": state.weights_sha256,
        "stages_published": state.stages_published,
        "stages_total": state.stages_total,
        "error": state.error,
    }
    places = read_places(data_home(), state.name)
    memory = memory_figures(data_home(), state.name, places)
    timed = last_iteration(places, Store(data_home()))
    figures = figures_of_iteration(places, Store(data_home()), timed[0]) if timed else None
    if as_json:
        time = {"iteration": timed[0], "seconds": timed[1], **(figures or {})} if timed else None
        dump_json({**values, "memory": memory, "time": time})
        return
    memory_rows = [
        [f"memory of {name}", ", ".join(f"{as_gib(size)} {what.removesuffix('_bytes')}" for what, size in one.items())]
        for name, one in memory.items()
    ]
    show_table(["", ""], [[key, value] for key, value in values.items() if value is not None] + memory_rows)
    if timed and figures:
        print(f"\nthe time of iteration {timed[0]}:", *draw(timed[1]), *engine_lines(figures), sep="\n")
    if state.state not in ("completed", "running"):
        say(f"\nhint: go on with: cgrpo resume {state.name}")


def print_query(query: str, *, runs: list[str] | None, form: Form, deadline_s: float = 60.0) -> None:
    """Run a read-only query and print its rows."""
    from storage.catalog import query as ask

    def overrun() -> None:
        message = f"ended some seconds after the deadline of {deadline_s:g} s, which a single value did not heed"
        fail(message, "ask for less text, or allow more time with --deadline")
        os._exit(1)  # nothing else stops DuckDB; a query only reads

    result = ask(data_home(), query, deadline_s, runs, overrun)
    if form == "json":
        dump_json([dict(zip(result.columns, row, strict=True)) for row in result.rows])
    elif form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(result.columns)
        writer.writerows(result.rows)
    else:
        show_table(result.columns, result.rows)


def print_summary(home: Path, run: Run, *, seconds: float) -> None:
    """Print what each iteration did, and what a user would type next."""
    plan, store = read_plan(home, run.name), Store(home)
    iterations = max((stage.iteration or 0 for stage in plan.stages), default=0)
    rows = [iteration_row(store, stages_of(plan, iteration)) for iteration in range(iterations + 1)]
    columns = ["reward_mean", "accuracy", "refine_refinements", "verify_refinements_correct", "status", "loss"]
    columns += ["grad_norm", "entropy", "logprob_gap_max", "tokens", "tokens_per_second", "seconds"]
    show_table(
        ["iteration", *columns], [[number, *(row.get(name) for name in columns)] for number, row in enumerate(rows)]
    )
    state = run_state(home, run.name)
    say(f"\nrun {run.name}: {state.state} in {seconds:.0f} s")
    say(f"policy {state.policy_version}, weights {state.weights_sha256}")
    if os.environ.get("RAY_ADDRESS"):
        say("its engines stay on the Ray cluster; cgrpo engines --stop ends them")
    say("\nnext:")
    say(f'  cgrpo sql "{NEXT_QUERY}" --run {run.name}')
    say("  cgrpo ui")
    say(f"  cgrpo resume {run.name}")


def check_golden(directory: Path) -> bool:
    """Check every vector file of a folder; print a line for each failing case; return whether all agree."""
    from cgrpo_core.golden import check_case

    files = sorted(directory.glob("*.json")) if directory.is_dir() else []
    if not files:
        raise UserError(f"{directory} holds no *.json vector files", "name a folder such as tests/data/golden")
    agreed = total = 0
    for path in files:
        for number, case in enumerate(_cases(path)):
            faults = check_case(case)
            total += 1
            agreed += not faults
            if faults:
                label = case.get("id", number) if isinstance(case, dict) else number
                print(f"{path.name} {label}: {'; '.join(faults)}")
    print(f"{agreed} of {total} cases agree")
    return agreed == total


def _cases(path: Path) -> list[Any]:
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON file of cases: {error}") from None
    return cases if isinstance(cases, list) else [cases]


def show_table(columns: list[str], rows: list[Any], file: TextIO | None = None) -> None:
    """Print a table to stdout, or to `file`; cell text is shown as it is, never read as markup or terminal control."""
    table = Table(show_header=any(columns))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else 200)
    console.print(table)


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
    return "".join(mark if mark.isprintable() or mark == "\n" else f"\\x{ord(mark):02x}" for mark in text)
