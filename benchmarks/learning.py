"""Does it learn? A run of paper_v6 on the CPU, its curve as a picture, a table, and a verdict with its spread.

    python benchmarks/learning.py [--run NAME] [--iterations 40] [--out docs/learning.png] [--plot-only]

Starts the run if there is none of this name, goes on with it if it is unfinished, then asks the store. A verdict that
math-verify gives to an expression that was left standing (`7 + 4` for 11) counts as a reward, as it did in training,
and is also counted apart: a policy could learn to repeat the question.
"""

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.home import data_home
from storage.catalog import query
from storage.errors import RunNotFound
from storage.runs import run_state

Z = 1.96  # two-sided 95%
EARLY, LATE = 5, 10  # iterations that the verdict compares
UNWORKED = "v.answer not like '%=%' and regexp_matches(v.answer, '[0-9][ .]*([+*x]|[*][*])[ .]*[0-9]')"

ITERATIONS = f"""
with groups as (
    select r.iteration, r.group_id, avg(v.reward) as reward, bool_or(v.correct) as solved,
           count(*) as responses, count(*) filter (v.correct) as correct,
           count(*) filter (v.correct and {UNWORKED}) as unworked,
           count(*) filter (r.finish_reason = 'length') as truncated
    from responses r join verdicts v on v.run = r.run and v.subject_id = r.response_id group by all
), refined as (
    select iteration, count(distinct group_id) as refined from refinements group by all
)
select g.iteration, avg(g.reward) as reward, coalesce(stddev_samp(g.reward) / sqrt(count(*)), 0) as error,
       coalesce(any_value(f.refined), 0) / count(*) as refined, any_value(u.entropy) as entropy,
       sum(g.truncated) / sum(g.responses) as truncated, sum(g.unworked) / greatest(sum(g.correct), 1) as unworked
from groups g left join refined f using (iteration) left join updates u using (iteration)
group by g.iteration order by g.iteration
"""
EVALUATIONS = """
select policy_version as policy, count(*) filter (correct) as correct, count(*) as problems
from evaluations group by all order by all
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration; `error`: standard error of the mean reward over groups. Shares are of groups or of responses."""

    iteration: int
    reward: float
    error: float
    refined: float
    entropy: float | None
    truncated: float
    unworked: float  # of the correct responses, those whose answer was an expression left standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Greedy accuracy of a policy on the held-out problems."""

    policy: int
    correct: int
    problems: int

    @property
    def share(self) -> float:
        """Correct answers of all."""
        return self.correct / self.problems


def wilson(correct: int, problems: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson), which stays within 0 and 1 for small counts."""
    share, square = correct / problems, Z * Z
    middle = (share + square / (2 * problems)) / (1 + square / problems)
    half = Z * math.sqrt(share * (1 - share) / problems + square / (4 * problems**2)) / (1 + square / problems)
    return middle - half, middle + half


def one_digit(name: str, part: str, size: int, seed: int) -> str:
    """Return the setting of an input to sums and products of one-digit numbers, one part of their split."""
    options = f"size: {size}, seed: {seed}, split: {{part: {part}, eval_share: 0.3}}"
    parts = [f"{{kind: reasoning_gym, task: one_digit_{task}, {options}}}" for task in ("sums", "products")]
    return f"inputs.{name}={{kind: mixture, parts: [{', '.join(parts)}]}}"


def ensure_run(name: str, iterations: int) -> None:
    """Start the run, or go on with it. Raises CalledProcessError if it fails."""
    command = [str(Path(sys.executable).parent / "cgrpo")]
    try:
        state = run_state(data_home(), name).state
    except RunNotFound:
        sets = [f"run.iterations={iterations}", "evaluate.every=5", "checkpoint.every=10", "checkpoint.keep=1"]
        sets += [one_digit("problems", "train", 60, 17), one_digit("eval_problems", "eval", 28, 18)]
        options = [word for value in sets for word in ("--set", value)]
        command += ["run", "critique-grpo", "--profile", "cpu", *options, "--name", name]
    else:
        if state == "completed":
            return
        command += ["resume", name]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def read(name: str) -> tuple[list[Iteration], list[Accuracy]]:
    """Return what the store has of a run, finished or not."""

    def rows(sql: str) -> list[dict[str, Any]]:
        result = query(data_home(), sql, runs=[name])
        return [dict(zip(result.columns, row, strict=True)) for row in result.rows]

    return [Iteration(**row) for row in rows(ITERATIONS)], [Accuracy(**row) for row in rows(EVALUATIONS)]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(iterations: list[Iteration], accuracies: list[Accuracy]) -> str:
    """Return in plain words whether reward and accuracy rose above the spread of the first iterations."""
    lines = []
    if len(iterations) < EARLY + LATE:
        lines.append(f"{len(iterations)} iterations: too few to compare the first {EARLY} with the last {LATE}")
    else:
        early, spread = mean_and_deviation([row.reward for row in iterations[:EARLY]])
        late, late_spread = mean_and_deviation([row.reward for row in iterations[-LATE:]])
        error = math.hypot(spread / math.sqrt(EARLY), late_spread / math.sqrt(LATE))
        answer = "YES" if late - early > max(2 * error, spread) else "NO"
        lines.append(
            f"mean reward: first {EARLY} iterations {early:.3f} +- {spread:.3f}, last {LATE} {late:.3f} +- "
            f"{late_spread:.3f}; difference {late - early:+.3f}, its standard error {error:.3f}"
        )
        lines.append(f"reward rose above the spread of the first iterations: {answer}")
    if len(accuracies) > 1:
        first, last = accuracies[0], accuracies[-1]
        low = wilson(last.correct, last.problems)[0]
        apart = "lies below" if first.share < low else "does not lie below"
        lines.append(
            f"held-out greedy accuracy: {first.share:.3f} (policy {first.policy}), {last.share:.3f} (policy "
            f"{last.policy}), of {last.problems} problems; the first {apart} the 95% interval of the last"
        )
    return "\n".join(lines)


def table(iterations: list[Iteration], accuracies: list[Accuracy]) -> str:
    """Return a Markdown table: a row an iteration, with the accuracy of the policy that it ended with."""
    known = {row.policy: row for row in accuracies}
    lines = [
        "| iteration | mean reward | std. error | groups refined | entropy | cut at the limit | unworked answers "
        "| greedy accuracy after it (95%) |",
        "|--:|--:|--:|--:|--:|--:|--:|:--|",
    ]
    if 0 in known:
        lines.append(f"| 0 | | | | | | | {_accuracy(known[0])} |")
    for row in iterations:
        entropy = "" if row.entropy is None else f"{row.entropy:.2f}"
        after = _accuracy(known[row.iteration]) if row.iteration in known else ""
        lines.append(
            f"| {row.iteration} | {row.reward:.3f} | {row.error:.3f} | {row.refined:.2f} | {entropy} "
            f"| {row.truncated:.2f} | {row.unworked:.2f} | {after} |"
        )
    return "\n".join(lines)


def _accuracy(row: Accuracy) -> str:
    low, high = wilson(row.correct, row.problems)
    return f"{row.share:.3f} ({low:.2f} to {high:.2f})"


def plot(iterations: list[Iteration], accuracies: list[Accuracy], out: Path) -> None:
    """Write the picture: rewards and accuracy above, entropy and shares below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7.5), sharex=True, height_ratios=(3, 2))
    numbers = [row.iteration for row in iterations]
    rewards, errors = [row.reward for row in iterations], [row.error for row in iterations]
    edges = [[reward + side * error for reward, error in zip(rewards, errors, strict=True)] for side in (-1, 1)]
    above.fill_between(numbers, *edges, color="tab:blue", alpha=0.2, linewidth=0, label="± standard error over groups")
    above.plot(numbers, rewards, color="tab:blue", marker=".", label="mean reward of sampled responses")
    shares = [row.share for row in accuracies]
    bounds = [wilson(row.correct, row.problems) for row in accuracies]
    bars = [
        [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
        [high - share for share, (_, high) in zip(shares, bounds, strict=True)],
    ]
    policies = [row.policy for row in accuracies]
    label = "greedy accuracy on held-out problems (95% Wilson)"
    above.errorbar(policies, shares, yerr=bars, color="tab:red", marker="o", capsize=3, label=label)
    above.set_ylim(0, 1)
    above.set_ylabel("reward, accuracy")
    above.legend(loc="lower right", fontsize=9)
    above.grid(alpha=0.3)
    below.bar(numbers, [row.refined for row in iterations], color="tab:green", alpha=0.5, label="groups refined")
    below.plot(numbers, [row.truncated for row in iterations], color="tab:purple", label="responses cut at the limit")
    below.set_ylim(0, 1)
    below.set_ylabel("share")
    below.set_xlabel("iteration (accuracy: of the policy after it)")
    below.grid(alpha=0.3)
    entropy = below.twinx()
    measured = [row for row in iterations if row.entropy is not None]
    entropy.plot(
        [row.iteration for row in measured], [row.entropy for row in measured], color="tab:orange", label="entropy"
    )
    entropy.set_ylabel("entropy (nats a token)")
    entropy.set_ylim(bottom=0)
    lines = [axis.get_legend_handles_labels() for axis in (below, entropy)]
    below.legend(lines[0][0] + lines[1][0], lines[0][1] + lines[1][1], loc="upper right", fontsize=9)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Run or resume, read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="learning", help="name of the run")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/learning.png"))
    parser.add_argument("--plot-only", action="store_true", help="of what is there; nothing is run")
    arguments = parser.parse_args()
    if not arguments.plot_only:
        ensure_run(arguments.run, arguments.iterations)
    iterations, accuracies = read(arguments.run)
    if not iterations:
        sys.exit(f"run {arguments.run} has no iteration yet")
    plot(iterations, accuracies, arguments.out)
    print(table(iterations, accuracies))
    print(f"\n{verdict(iterations, accuracies)}\n\n{arguments.out}")


if __name__ == "__main__":
    main()
