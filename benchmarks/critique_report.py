"""What came of critique_helps.py: from the store by SQL, compared at equal numbers of sampled tokens.

A run's curve is its held-out greedy accuracy over the tokens that it has sampled, responses and refinements, up to
each evaluated policy. The budget is what the run that sampled least has sampled in the end; every curve is read there,
and at a quarter and half of it, linearly between two evaluations. Intervals are Student's over seeds, 95%; differences
between arms are paired by seed. What the store does not have, seconds and CPU-seconds of a run, is in `costs.jsonl`.
"""

import json
import math
import statistics
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from storage.catalog import query
from storage.errors import RunNotFound
from storage.runs import run_state

# Of Student's distribution, 97.5%, by degrees of freedom.
STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
SHARES = (0.25, 0.5, 1.0)

NEVER_RIGHT = """
select p.question, p.ground_truth from problems p
join responses r on r.run = p.run and r.problem_id = p.problem_id
join verdicts v on v.run = r.run and v.subject_id = r.response_id
where p.stage = 'load_problems'
group by all having not bool_or(v.correct) order by p.question
"""
BASE = """
with tries as (
  select r.run, r.problem_id, v.correct from responses r
  join verdicts v on v.run = r.run and v.subject_id = r.response_id where r.iteration = 1
)
select count(distinct problem_id) as problems, count(*) as responses, avg(correct::int) as right_of_responses,
       (select avg(solved::int) from (select bool_or(correct) as solved from tries group by problem_id)) as pass_at_8,
       (select count(*) from refinements) as refinements,
       (select avg(v.correct::int) from refinements f
        join verdicts v on v.run = f.run and v.subject_id = f.refinement_id) as right_of_refinements
from tries
"""
TOKENS = """
select iteration, sum(len(token_ids)) as tokens
from (select iteration, token_ids from responses union all select iteration, token_ids from refinements)
group by iteration order by iteration
"""
ACCURACY = """
select e.policy_version, p.level, avg(e.correct::int) as accuracy
from evaluations e join problems p on p.run = e.run and p.problem_id = e.problem_id and p.stage = 'load_eval_problems'
group by all order by all
"""
UPDATES = """
select iteration, entropy, response_tokens + refinement_tokens as trained, samples_trained from updates order by all
"""
TRIES = """
select r.iteration, r.problem_id, avg(v.correct::int) as reward, bool_or(v.correct and r.index < 7) as solved
from responses r join verdicts v on v.run = r.run and v.subject_id = r.response_id group by all order by all
"""
REFINED = """
select f.iteration, count(*) as refinements, sum(v.correct::int) as correct
from refinements f join verdicts v on v.run = f.run and v.subject_id = f.refinement_id group by all order by all
"""
Row = dict[str, Any]


def make(home: Path, arms: Sequence[tuple[str, str, int, str]]) -> Row:
    """Return the report over those runs (arm, learning rate, seed, run) that are complete."""
    runs = [
        {"arm": arm, "rate": rate, "seed": seed, "run": run, **read(home, run)}
        for arm, rate, seed, run in arms
        if _complete(home, run)
    ]
    if not runs:
        return {"budget": 0, "runs": [], "arms": [], "differences": []}
    budget = min(run["tokens"][-1] for run in runs)
    for run in runs:
        run["at_budget"] = at_budget(run, budget)
        run["costs"] = _costs(home, run["run"])
    names = list(dict.fromkeys((run["arm"], run["rate"]) for run in runs))
    groups = {name: [run for run in runs if (run["arm"], run["rate"]) == name] for name in names}
    return {
        "budget": budget,
        "base": _base(home),
        "runs": runs,
        "arms": [{"arm": arm, "rate": rate, **_summary(found)} for (arm, rate), found in groups.items()],
        "differences": [
            _difference(groups[one], groups[other]) for one, other in combinations(names, 2) if one[0] != other[0]
        ],
    }


def read(home: Path, run: str) -> Row:
    """Return what the store has of a run, in plain lists over iterations; index 0 is the base model."""

    def ask(sql: str) -> list[tuple[Any, ...]]:
        return query(home, sql, runs=[run]).rows

    tokens = [0]
    for _, count in ask(TOKENS):
        tokens.append(tokens[-1] + int(count))
    levels: dict[str, dict[int, float]] = {}
    for policy, level, accuracy in ask(ACCURACY):
        levels.setdefault(level or "all", {})[policy] = accuracy
    return {
        "tokens": tokens,
        "accuracy": levels,
        "updates": [list(row) for row in ask(UPDATES)],
        "tries": [list(row) for row in ask(TRIES)],
        "refined": [[int(cell) for cell in row] for row in ask(REFINED)],
    }


def between(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """Return the value at a place, on straight lines between known ones; the ends hold beyond them."""
    for (low, first), (high, last) in pairwise(zip(places, values, strict=True)):
        if place <= high:
            return first + (last - first) * max(0.0, place - low) / (high - low)
    return values[-1]


def reached(places: Sequence[float], values: Sequence[float], value: float) -> float | None:
    """Return the first place where a curve is at least so high, on straight lines between known places; or None."""
    for (low, first), (high, last) in pairwise(zip(places, values, strict=True)):
        if first >= value:
            return low
        if last >= value:
            return low + (high - low) * (value - first) / (last - first)
    return None


def at_budget(run: Row, budget: int) -> Row:
    """Return what a run had come to when it had sampled the budget."""
    tokens = run["tokens"]
    half, last = (max(i for i, count in enumerate(tokens) if count <= share * budget) for share in (0.5, 1.0))
    curves = {level: (list(found), list(found.values())) for level, found in run["accuracy"].items()}
    found: Row = {
        f"{level}_at_{share:g}": between([tokens[policy] for policy in policies], values, share * budget)
        for level, (policies, values) in curves.items()
        for share in (SHARES if level in ("hard", "all") else (1.0,))
    }
    visits = {problem: (reward, solved) for i, problem, reward, solved in run["tries"] if i <= last}
    earlier = {problem: solved for i, problem, _, solved in run["tries"] if i <= half}
    rewards = [reward for i, _, reward, _ in run["tries"] if last - 4 <= i <= last]
    entropies = [entropy for i, entropy, _, _ in run["updates"] if last - 4 <= i <= last and entropy is not None]
    refined = [row for row in run["refined"] if row[0] <= last]
    return found | {
        "tokens_to_half": reached(*_accuracy(run), 0.5),
        "iterations": last,
        "reward_last_5": statistics.fmean(rewards),
        "problems_at_half": len(earlier),
        "solved_at_half": sum(earlier.values()),
        "problems": len(visits),
        "solved": sum(solved for _, solved in visits.values()),
        "mostly_right": sum(reward > 0.5 for reward, _ in visits.values()),
        "entropy": statistics.fmean(entropies) if entropies else None,
        "trained_tokens": sum(trained for i, _, trained, _ in run["updates"] if i <= last),
        "refinements": sum(row[1] for row in refined),
        "refinements_right": sum(row[2] for row in refined),
    }


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, and the bounds of its 95% interval (Student's; nan for a single value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _summary(runs: list[Row]) -> Row:
    names = [name for name, value in runs[0]["at_budget"].items() if value is not None]
    columns = {name: [run["at_budget"][name] for run in runs if run["at_budget"][name] is not None] for name in names}
    costs = {
        "iterations_run": [len(run["tokens"]) - 1 for run in runs],
        "sampled_tokens": [run["tokens"][-1] for run in runs],
        "seconds": [run["costs"]["seconds"] for run in runs if run["costs"]],
        "cpu_seconds": [run["costs"]["cpu_seconds"] for run in runs if run["costs"]],
    }
    return {"seeds": len(runs)} | {name: interval(values) for name, values in (columns | costs).items() if values}


def _difference(one: list[Row], other: list[Row]) -> Row:
    level = "hard_at_" if "hard" in one[0]["accuracy"] else "all_at_"
    found: Row = {"arms": [one[0]["arm"], other[0]["arm"]], "rates": [one[0]["rate"], other[0]["rate"]]}
    others = {run["seed"]: run["at_budget"] for run in other}
    pairs = [(run["at_budget"], others[run["seed"]]) for run in one if run["seed"] in others]
    if pairs:
        found["pairs"] = len(pairs)
        for name in [f"{level}{share:g}" for share in SHARES] + ["solved_at_half", "solved", "tokens_to_half"]:
            known = [(first[name], second[name]) for first, second in pairs if None not in (first[name], second[name])]
            if known:
                found[name] = interval([last - first for first, last in known])
    return found


def _complete(home: Path, run: str) -> bool:
    try:
        return run_state(home, run).state == "completed"
    except RunNotFound:
        return False


def _base(home: Path) -> Row:
    probe = next(iter(sorted((home / "runs").glob("*seed201*"))), None)
    if probe is None:
        return {}
    found = query(home, BASE, runs=[probe.name])
    return dict(zip(found.columns, found.rows[0], strict=True))


def _costs(home: Path, run: str) -> Row | None:
    path = home.parent / "costs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((row for row in rows if row["run"] == run and row["whole"]), None)


def table(report: Row) -> str:
    """Return the report as Markdown."""
    lines = [f"base model: {report.get('base')}", f"budget: {report['budget']} sampled tokens a run", ""]
    for arm in report["arms"]:
        lines.append(f"### {arm['arm']}, learning rate {arm['rate']}, {arm['seeds']} seeds")
        lines += [f"- {name}: {_shown(value)}" for name, value in arm.items() if isinstance(value, tuple)]
    lines.append("### paired differences, the second arm less the first")
    for row in report["differences"]:
        shown = [f"{name} {_shown(value)}" for name, value in row.items() if isinstance(value, tuple)]
        lines.append(f"- {row['arms'][0]} -> {row['arms'][1]}: {'; '.join(shown)}")
    return "\n".join(lines)


def _shown(value: tuple[float, float, float]) -> str:
    digits = 0 if abs(value[0]) > 100 else 3
    return f"{value[0]:.{digits}f} ({value[1]:.{digits}f} to {value[2]:.{digits}f})"


def plot(report: Row, out: Path) -> None:
    """Write the picture: held-out accuracy, training reward and entropy over sampled tokens, mean and interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.2))
    titles = ("held-out greedy accuracy, hard sums", "mean reward of responses", "entropy, nats a token")
    grid = [report["budget"] * step / 40 for step in range(41)]
    arms = list(dict.fromkeys((run["arm"], run["rate"]) for run in report["runs"]))
    for number, arm in enumerate(arms):
        runs = [run for run in report["runs"] if (run["arm"], run["rate"]) == arm]
        for axis, title, curve in zip(axes, titles, (_accuracy, _reward, _entropy), strict=True):
            points = [[between(*curve(run), place) for place in grid] for run in runs]
            bands = [interval(column) for column in zip(*points, strict=True)]
            axis.plot(grid, [band[0] for band in bands], color=f"C{number}", label=arm[0])
            if len(runs) > 1:
                low, high = [band[1] for band in bands], [band[2] for band in bands]
                axis.fill_between(grid, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("sampled tokens, responses and refinements")
            axis.grid(alpha=0.3)
            axis.set_ylim(0, None if curve is _entropy else 1)
    axes[0].legend(fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


Curve = tuple[list[float], list[float]]


def _accuracy(run: Row) -> Curve:
    found = run["accuracy"].get("hard") or run["accuracy"]["all"]
    return [run["tokens"][policy] for policy in found], list(found.values())


def _reward(run: Row) -> Curve:
    rewards: dict[int, list[float]] = {}
    for iteration, _, reward, _ in run["tries"]:
        rewards.setdefault(iteration, []).append(reward)
    return [run["tokens"][i] for i in rewards], [statistics.fmean(found) for found in rewards.values()]


def _entropy(run: Row) -> Curve:
    known = [(run["tokens"][i], entropy) for i, entropy, _, _ in run["updates"] if entropy is not None]
    return [place for place, _ in known], [entropy for _, entropy in known]
