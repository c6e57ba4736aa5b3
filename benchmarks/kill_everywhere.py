"""Kill everything, everywhere: does a run that is resumed end exactly as the run that was left alone?

    python benchmarks/kill_everywhere.py [--points 100] [--seed 1] [--directory DIR] [--minutes M] [--table]

SIGKILL of the flow process, the process that carries out a stage, the sampler, the trainer, one rank of two, the
Ray head, the Prefect server, and the whole process tree: within stages, while an artifact, weights or a checkpoint is
being written, at stage boundaries, in the last iteration and where a new epoch begins. A run is killed at each point of
its chain and resumed after each kill that ended it. After every kill, and at the end, everything that is published is
compared with the undisturbed run: each row of each table, each weights digest; nothing may be published twice.

It goes on where it stopped: what is done lies in DIR/results.jsonl. --minutes ends it between two chains.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kill_lab import Lab, kill_all, open_lab, settings
from kill_points import Chain, Point, Watch, draw_chains

from flows.interrupts import interruptible
from storage.artifacts import Store
from storage.plans import Plan
from storage.runs import read_plan, run_state
from storage.schemas import RECORDS

NAME = "killed"
ATTEMPTS = 4  # resumes after the last kill of a chain; one is enough if nothing is wrong
END_S = 300  # a flow whose cluster is gone must have ended by then
VARIES = {"elapsed_ms", "latency_ms", "seconds"}
# The sampler's log-probs differ in the last bits with what else is in its batch, such as requests of a killed flow.
NEARLY = {"sampling_logprobs", "kl_to_sampler", "logprob_gap_mean", "logprob_gap_max"}
TOLERANCE = 1e-4


def undisturbed(lab: Lab) -> None:
    """Make the run to compare with, once."""
    if (lab.reference / "artifacts").exists():
        return
    for _ in range(2):  # the second time engines and workers are warm: the usual seconds of a stage are those
        lab.wipe()
        process = lab.start("run", "critique-grpo", "--name", NAME, *settings(lab.directory, lab.ranks))
        if process.wait():
            sys.exit(f"the undisturbed run failed: see {lab.directory / 'flow.log'}")
    lab.reference.mkdir(exist_ok=True)
    (lab.home / "runs").rename(lab.reference / "runs")
    (lab.home / "artifacts").rename(lab.reference / "artifacts")
    lab.wipe()


def usual_seconds(home: Path, plan: Plan) -> dict[str, float]:
    """Return the seconds between a stage's manifest and the one before it, in the undisturbed run."""
    ends = [manifest.ended_at for stage in plan.stages if (manifest := Store(home).find(stage.key))]
    labels = [stage.label for stage in plan.stages]
    return {label: max(0.0, end - start) for label, start, end in zip(labels[1:], ends, ends[1:], strict=False)}


def run_chain(lab: Lab, chain: Chain, plan: Plan) -> dict[str, Any]:
    """Kill one run at each point of its chain, let it end, and return what was seen."""
    lab.wipe()
    began, first, kills, exits = time.monotonic(), dict[str, float](), list[dict[str, Any]](), list[int]()
    differences: list[str] = []
    try:
        process = _kill_at_each(lab, chain, plan, first, kills)
        exits = _let_it_end(lab, process)
    except (
        TimeoutError,
        subprocess.TimeoutExpired,
    ) as error:  # what hangs is a finding like any other, and the next chain may go on
        differences.append(str(error))
        lab.kill_flows()
    state = run_state(lab.home, NAME)
    differences += compare(lab, plan, first)
    if state.state != "completed" or state.stages_published != state.stages_total:
        differences.append(f"the run is {state.state}: {state.error}")
    if state.weights_sha256 != run_state(lab.reference, NAME).weights_sha256:
        differences.append(
            f"weights {state.weights_sha256}, undisturbed {run_state(lab.reference, NAME).weights_sha256}"
        )
    seconds = round(time.monotonic() - began, 1)
    return {"chain": chain.number, "kills": kills, "exits": exits, "differences": differences, "seconds": seconds}


def _kill_at_each(
    lab: Lab, chain: Chain, plan: Plan, first: dict[str, float], kills: list[dict[str, Any]]
) -> subprocess.Popen[bytes] | None:
    """Kill at each point of a chain, and add what was seen to `kills`; return the process that is left."""
    watch = Watch(lab.home, plan, usual_seconds(lab.reference, plan))
    left: set[str] = set()  # what earlier kills left half-written
    process: subprocess.Popen[bytes] | None = None
    for point in chain.points:
        reached, process = _reach(lab, watch, point, process)
        if reached:
            _kill(lab, point, process)
        fell, writing = watch.place(), sorted(set(watch.writing()) - left)
        left |= set(writing)
        lab.start_services()
        _end_if_dead(point, process)
        kills.append({**asdict(point), "killed": reached, "fell": fell, "writing": [w[:20] for w in writing]})
        kills[-1]["differences"] = compare(lab, plan, first)
    return process


def _reach(
    lab: Lab, watch: Watch, point: Point, process: subprocess.Popen[bytes] | None
) -> tuple[bool, subprocess.Popen[bytes]]:
    """Bring the run to a point, resuming it where an earlier kill ended it; False if it completed before."""
    for _ in range(ATTEMPTS):
        if process is None or process.poll() is not None:
            process = _go_on(lab)
        if watch.wait_for(point, process, lambda: _is_there(lab, point.target)):
            return True, process
        if process.returncode == 0:
            break
    assert process is not None
    return False, process


def _go_on(lab: Lab) -> subprocess.Popen[bytes]:
    if (lab.home / "runs" / NAME).exists():
        return lab.start("resume", NAME)
    return lab.start("run", "critique-grpo", "--name", NAME, *settings(lab.directory, lab.ranks))


def _is_there(lab: Lab, target: str) -> bool:
    if target in ("sampler", "trainer", "rank"):
        kind = "Sampler" if target == "sampler" else "Trainer"
        return len(lab.engine_processes(kind)) >= (2 if target == "rank" else 1)
    return target != "worker" or bool(lab.stage_processes())


def _kill(lab: Lab, point: Point, process: subprocess.Popen[bytes]) -> None:
    if point.target in ("flow", "tree"):
        process.kill()
    if point.target == "worker":
        kill_all(lab.stage_processes())
    if point.target == "sampler":
        kill_all(lab.engine_processes("Sampler"))
    if point.target in ("trainer", "rank"):
        kill_all(
            lab.engine_processes("Trainer")[1 if point.target == "rank" else 0 :][
                : 1 if point.target == "rank" else None
            ]
        )
    if point.target == "head":
        lab.kill_gcs()
        time.sleep(1)
    if point.target in ("head", "tree"):
        lab.kill_head()
    if point.target in ("server", "tree"):
        lab.kill_server()
    if point.target in ("flow", "tree"):
        process.wait()


def _end_if_dead(point: Point, process: subprocess.Popen[bytes]) -> None:
    """A flow whose cluster is gone cannot go on; it must end by itself."""
    if point.target != "head":
        return
    try:
        process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"the flow was still there {END_S} s after its cluster had gone") from None


def _let_it_end(lab: Lab, process: subprocess.Popen[bytes] | None) -> list[int]:
    """Wait for the run, resuming it if need be; return the exit codes."""
    exits: list[int] = []
    for _ in range(ATTEMPTS):
        if process is None or process.poll() is not None:
            process = _go_on(lab)
        exits.append(process.wait(timeout=600))
        if exits[-1] == 0:
            break
    return exits


def compare(lab: Lab, plan: Plan, first: dict[str, float]) -> list[str]:
    """Return how what is published differs from the undisturbed run, or from what was published before."""
    store, reference, found = Store(lab.home), Store(lab.reference), []
    for stage in plan.stages:
        manifest = store.find(stage.key)
        if manifest is None:
            if stage.key in first:
                found.append(f"{stage.label} is no longer there")
            continue
        if first.setdefault(stage.key, manifest.started_at) != manifest.started_at:
            found.append(f"{stage.label} was published twice")
        for output, name in stage.outputs.items():
            record = RECORDS[name]
            mine, other = store.read(stage.key, output, record), reference.read(stage.key, output, record)
            if len(mine) != len(other):
                found.append(f"{stage.label}.{output}: {len(mine)} rows, undisturbed {len(other)}")
            found += [f"{stage.label}.{output} {text}" for text in _row_differences(mine, other)]
    return found


def _row_differences(mine: list[Any], other: list[Any]) -> list[str]:
    found = []
    for row, (left, right) in enumerate(zip(mine, other, strict=False)):
        for name, value in asdict(left).items():
            wanted = getattr(right, name)
            if name not in VARIES and not (_near(value, wanted) if name in NEARLY else value == wanted):
                found.append(f"row {row}: {name} is {value!r}, undisturbed {wanted!r}"[:300])
    return found


def _near(value: Any, wanted: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == len(wanted) and all(map(_near, value, wanted))
    return value == wanted or (value is not None and wanted is not None and abs(value - wanted) <= TOLERANCE)


def table(results: list[dict[str, Any]]) -> str:
    """Return what was killed where, as text, and the verdict."""
    kills = [kill for result in results for kill in result["kills"]]
    lines = ["| killed | meant | times | fell while being written | differences |", "|---|---|---|---|---|"]
    for target, moment in sorted({(kill["target"], kill["moment"]) for kill in kills}):
        those = [k for k in kills if (k["target"], k["moment"]) == (target, moment) and k["killed"]]
        writing, wrong = sum(bool(k["writing"]) for k in those), sum(bool(k["differences"]) for k in those)
        lines.append(f"| {target} | {moment} | {len(those)} | {writing} | {wrong} |")
    places = Counter(
        kill["fell"] if kill["fell"] == "the end" else kill["fell"].split()[0] for kill in kills if kill["killed"]
    )
    done = sum(kill["killed"] for kill in kills)
    seconds = sum(result["seconds"] for result in results)
    failed = [result["chain"] for result in results if result["differences"]]
    lines.append(
        "\nfirst stage that was not published when the kill fell: "
        + ", ".join(f"{k} {v}" for k, v in places.most_common())
    )
    lines.append(
        f"{done} kills in {len(results)} runs, {seconds / 60:.0f} minutes; runs with a difference: {failed or 'none'}"
    )
    return "\n".join(lines)


def recorded(state: Path) -> list[dict[str, Any]]:
    """Return the results of the chains that are done."""
    return [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []


def record(state: Path, result: dict[str, Any]) -> None:
    """Keep the result of a chain, and say it in a line."""
    with state.open("a") as file:
        file.write(json.dumps(result) + "\n")
        os.fsync(file.fileno())
    verdict = result["differences"] or "no difference"
    print(f"chain {result['chain']}: {len(result['kills'])} kills, {result['seconds']} s, {verdict}", file=sys.stderr)


def go_through(directory: Path, ranks: int, arguments: argparse.Namespace, until: float) -> None:
    """Carry out the chains with so many ranks that are not done, or the one that was asked for."""
    state = directory / "results.jsonl"
    with interruptible(), open_lab(directory, ranks) as lab:
        undisturbed(lab)
        plan = read_plan(lab.reference, NAME)
        for chain in draw_chains(plan, arguments.points, arguments.seed):
            done = {result["chain"] for result in recorded(state)}
            wanted = chain.number not in done if arguments.chain is None else chain.number == arguments.chain
            if chain.ranks == ranks and wanted and time.monotonic() < until:
                record(state, run_chain(lab, chain, plan))


def main() -> None:
    """Go through the chains that are not done, and print the table. Exits 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, default=Path(".cgrpo-kill"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no chain after so many minutes")
    parser.add_argument("--chain", type=int, help="only this one, done or not")
    parser.add_argument("--ranks", type=int, choices=(1, 2), action="append", help="only the chains with so many ranks")
    parser.add_argument("--table", action="store_true", help="only print what is done")
    arguments = parser.parse_args()
    directory, until = arguments.directory.resolve(), time.monotonic() + arguments.minutes * 60
    directory.mkdir(parents=True, exist_ok=True)
    for ranks in () if arguments.table else arguments.ranks or (1, 2):
        if time.monotonic() < until:
            go_through(directory, ranks, arguments, until)
    results = recorded(directory / "results.jsonl")
    print(table(results))
    sys.exit(any(result["differences"] or any(k["differences"] for k in result["kills"]) for result in results))


if __name__ == "__main__":
    main()
