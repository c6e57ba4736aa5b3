"""What an evaluation shows: its figures beside those of other policies of the run, and the catalogue."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cgrpo_core.records import BenchmarkFigure
from flows.evaluation_plan import EVALUATION, SUMMARISE, comparison
from flows.overlays import overlay, parse_setting
from flows.report import show_table
from flows.resolve import read_declaration, validate
from flows.spec import Declaration
from flows.terminal import dump_json, say
from storage.artifacts import Store
from storage.runs import Run, list_runs, read_plan, run_state

COUNTS = ("unjudged", "unanswered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of one policy on one benchmark, asked in one way. comparison: what those that compare share."""

    comparison: str
    benchmark: str
    policy_version: int
    figures: dict[str, BenchmarkFigure]


def measurements(home: Path, run: Run) -> list[Measurement]:
    """Return what an evaluation has published, in the order of its plan."""
    store, plan, found = Store(home), read_plan(home, run.name), []
    for stage in plan.stages:
        if stage.task != SUMMARISE or store.find(stage.key) is None:
            continue
        figures = store.read(stage.key, "figures", BenchmarkFigure)
        found.append(
            Measurement(
                comparison=comparison(plan, stage),
                benchmark=figures[0].benchmark,
                policy_version=figures[0].policy_version,
                figures={figure.metric: figure for figure in figures},
            )
        )
    return found


def with_others(home: Path, run: Run) -> list[Measurement]:
    """Return an evaluation's measurements among those of other policies of the run that were asked in the same way."""
    own = measurements(home, run)
    known: dict[tuple[str, int], Measurement] = {}
    for other in list_runs(home):
        if other.pipeline == EVALUATION and other.parent == run.parent:
            known |= {(item.comparison, item.policy_version): item for item in measurements(home, other)}
    wanted = dict.fromkeys(item.comparison for item in own)
    return [known[place] for asked in wanted for place in sorted(known) if place[0] == asked]


def print_evaluation(home: Path, run: Run, *, plot: Path | None = None, as_json: bool = False) -> None:
    """Print a table, or JSON, and draw the figures of greedy answers by policy."""
    from flows.evaluation_plot import draw

    shown = with_others(home, run)
    state = run_state(home, run.name)
    if as_json:
        dump_json(
            {
                "run": run.name,
                "policy": run.parent,
                "policy_version": state.policy_version,
                "weights_sha256": state.weights_sha256,
                "figures": [asdict(figure) for item in shown for figure in item.figures.values()],
            }
        )
    else:
        show_table(*_table(shown))
        _say_sizes(home, run)
    path = draw(shown, plot or home / "plots" / f"{run.name}.png", title=str(run.parent))
    say(f"evaluation {run.name}: {state.state}\nplot: {path}")
    say(f'next:\n  cgrpo sql "select * from benchmark_figures order by all" --run {run.name}')


def print_catalogue(file: Path, *, sets: list[str], as_json: bool) -> None:
    """Print the benchmarks that a declaration knows."""
    _, raw = read_declaration(file)
    for setting in sets:
        raw = overlay(raw, parse_setting(setting))
    declaration: Declaration = validate(Declaration, raw, str(file))
    if as_json:
        dump_json({name: benchmark.model_dump() for name, benchmark in declaration.benchmarks.items()})
        return
    columns = ["name", "title", "problems", "from", "form", "prompt", "verifier", "samples", "licence", "note"]
    rows = []
    for name, one in declaration.benchmarks.items():
        origin = one.path or (f"{one.hub.repo}/{one.hub.file}" if one.hub else "")
        what = [name, one.title, one.size, origin, one.format, one.template, one.verifier]
        rows.append([*what, one.samples, one.licence, one.note])
    show_table(columns, rows)


def _table(shown: list[Measurement]) -> tuple[list[str], list[list[Any]]]:
    columns = ["benchmark", "prompt", "temperature", "policy", "problems", "average", "pass@k", "maj@k"]
    columns += ["tokens", "truncated", *COUNTS]
    return columns, [_row(item) for item in shown]


def _row(item: Measurement) -> list[Any]:
    first = next(iter(item.figures.values()))
    n = first.samples_per_problem
    metrics = ("pass@1", "", "") if n == 1 else (f"avg@{n}", f"pass@{n}", f"maj@{n}")
    shown = [item.figures.get(metric) for metric in metrics]
    cells = [f"{figure.metric} {_with_interval(figure)}" if figure else "" for figure in shown]
    plain = {name: item.figures[name].value for name in ("mean_tokens", "truncated", *COUNTS) if name in item.figures}
    tokens, truncated = plain.get("mean_tokens"), plain.get("truncated")
    return [
        *(item.benchmark, first.template, first.temperature, item.policy_version),
        *(shown[0].problems if shown[0] else 0, *cells),
        *(None if tokens is None else round(tokens, 1), None if truncated is None else f"{truncated:.1%}"),
        *(int(plain[name]) if name in plain else None for name in COUNTS),
    ]


def _with_interval(figure: BenchmarkFigure) -> str:
    bounds = "" if figure.low is None or figure.high is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{bounds}"


def _say_sizes(home: Path, run: Run) -> None:
    """Say where a file had another number of problems than the benchmark is known to have."""
    store = Store(home)
    for stage in read_plan(home, run.name).stages:
        manifest = store.find(stage.key)
        if "source" not in stage.leaves or manifest is None:
            continue
        leaf, counts = stage.leaves["source"], manifest.counts
        if leaf["size"] not in (None, counts["problems"]) or counts["rejected"]:
            more = ", ".join(f"{name} {count}" for name, count in counts.items() if count and name != "problems")
            known = "" if leaf["size"] is None else f" (the catalogue knows {leaf['size']})"
            say(f"{leaf['name']}: {counts['problems']} problems{known}{'; ' + more if more else ''}")
