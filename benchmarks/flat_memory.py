"""Whether memory grows with the number of iterations: 200 of them on a tiny model, with the real engines.

    python benchmarks/flat_memory.py [--iterations 200] [--directory DIRECTORY] [--report-only]

Runs `cgrpo run` with a Prefect server and a Ray of its own, and samples RSS and PSS of every process below it, by role,
until it ends. The slope of each role is that of a line through the means of ten blocks of the iterations after the
first 50, with its 95% interval (Student's t, 8 degrees of freedom). Blocks, because neighbouring samples are alike.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from kill_lab import settings, tree

from storage.artifacts import Store
from storage.errors import StorageError
from storage.runs import read_plan

NAME = "flat"
EVERY_S = 2.0
WARM = 50
BLOCKS, T_8 = 10, 2.306
ROLES = (("ray::Sampler", "sampler"), ("ray::Trainer", "trainer"), ("raylet", "raylet"), ("gcs_server", "gcs"))
REST = ("ray::Dashboard", "ray::RuntimeEnv", "ray-dashboard")


def role_of(process: psutil.Process, root: int, known: dict[int, str]) -> str:
    """Return what a process of the run is; Ray renames its workers with each stage, so an engine stays what it was."""
    name, command = process.name(), " ".join(process.cmdline())
    role = next((role for start, role in ROLES if name.startswith(start) or f"/{start}" in command[:200]), None)
    if role is None and process.pid == root:
        role = "flow"
    if role is None and "prefect" in command and "server" in command:
        role = "prefect server"
    if role is None and name.startswith("ray::") and not name.startswith(REST):
        role = "stage workers"
    if known.get(process.pid) not in ("sampler", "trainer"):
        known[process.pid] = role or "rest of Ray"
    return known[process.pid]


def sample(root: int, known: dict[int, str]) -> dict[str, dict[str, float]]:
    """Return processes, RSS and PSS in MiB of each role at this moment."""
    found: dict[str, dict[str, float]] = {}
    for process in tree(root):
        try:
            memory = process.memory_full_info()
            role = found.setdefault(role_of(process, root, known), {"processes": 0, "rss": 0.0, "pss": 0.0})
        except psutil.Error:
            continue  # it ended while it was looked at
        role["processes"] += 1
        role["rss"] += memory.rss / 2**20
        role["pss"] += memory.pss / 2**20
    return found


def watch(command: list[str], environment: dict[str, str], home: Path, log: Path, kept: Path) -> None:
    """Run a command to its end; keep a line a sample, with the iterations that were complete by then."""
    known: dict[int, str] = {}
    waiting: list[str] | None = None
    done, began = 0, time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        while child.poll() is None:
            waiting = _updates(home) if waiting is None else waiting
            while waiting and Store(home).has(waiting[0]):
                waiting.pop(0)
                done += 1
            roles = sample(child.pid, known)
            now = {"iteration": done, "seconds": round(time.monotonic() - began, 1), "roles": roles}
            with kept.open("a") as file:
                file.write(json.dumps(now) + "\n")
            time.sleep(EVERY_S)
    finally:
        child.terminate()  # does nothing to one that has ended
        child.wait()
    if child.returncode:
        sys.exit(f"the run failed with exit code {child.returncode}: {log}")


def _updates(home: Path) -> list[str] | None:
    try:
        stages = read_plan(home, NAME).stages
    except StorageError:  # the run is not made yet
        return None
    return [stage.key for stage in stages if stage.stage == "update"]


def slope(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope in MiB per 100 iterations, and half the width of its 95% interval, by means of blocks."""
    blocks = [block.mean(axis=0) for block in np.array_split(np.array(sorted(points)), BLOCKS)]
    x, y = np.array(blocks).T
    centred = x - x.mean()
    rise = (centred @ (y - y.mean())) / (centred @ centred)
    rest = y - y.mean() - rise * centred
    error = np.sqrt(rest @ rest / (BLOCKS - 2) / (centred @ centred))
    return float(100 * rise), float(100 * T_8 * error)


def report(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a role: MiB at iteration 50 and at the end, and the slopes of RSS and PSS after iteration 50."""
    late = [one for one in samples if one["iteration"] >= WARM and one["roles"]]
    roles = sorted({role for one in late for role in one["roles"]})
    late = [one for one in late if len(one["roles"]) == len(roles)]  # after the last iteration they end, one by one
    rows = []
    for role in [*roles, "all"]:
        row: dict[str, Any] = {"role": role}
        for kind in ("pss", "rss"):
            points = [(float(one["iteration"]), _of(one, role, kind)) for one in late]
            rise, half = slope(points)
            row |= {f"{kind}_mib": round(points[0][1], 1), f"{kind}_mib_at_end": round(points[-1][1], 1)}
            row |= {f"{kind}_mib_per_100_iterations": round(rise, 2), f"{kind}_half_interval": round(half, 2)}
        row["processes"] = max(_of(one, role, "processes") for one in late)
        rows.append(row)
    return rows


def _of(one: dict[str, Any], role: str, kind: str) -> float:
    roles = one["roles"].values() if role == "all" else [one["roles"].get(role, {})]
    return float(sum(values.get(kind, 0.0) for values in roles))


def main() -> None:
    """Run and sample, or read the samples of before, and print a row a role as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--directory", type=Path, help="by default a new one")
    parser.add_argument("--report-only", action="store_true", help="of the samples that are in the directory so far")
    arguments = parser.parse_args()
    directory = (arguments.directory or Path(tempfile.mkdtemp(prefix="flat-memory-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    kept = directory / "samples.jsonl"
    if not arguments.report_only:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PREFECT_API_URL")
        }
        environment |= {"CGRPO_HOME": str(directory / "home"), "RAY_raylet_start_wait_time_s": "300"}
        sets = {"run.iterations": arguments.iterations, "run.chunks": 2, "evaluate.every": 20}
        sets |= {
            "optimizer.lr": "1e-6",
            "gates.constant_reward.then": "ignore",
        }  # such a model soon answers always alike
        command = [
            str(Path(sys.executable).parent / "cgrpo"),
            "run",
            "critique-grpo",
            "--profile",
            "cpu",
            "--name",
            NAME,
        ]
        command += settings(directory, 1) + [
            word for name, value in sets.items() for word in ("--set", f"{name}={value}")
        ]
        kept.unlink(missing_ok=True)
        watch(command, environment, directory / "home", directory / "run.log", kept)
    for row in report([json.loads(line) for line in kept.read_text().splitlines()]):
        print(json.dumps(row))
    print(f"data: {directory}", file=sys.stderr)


if __name__ == "__main__":
    main()
