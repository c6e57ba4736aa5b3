"""What `make train` costs once everything is installed: seconds, peak memory of all processes, seconds of each stage.

    python benchmarks/train.py [--name NAME] [--home DIRECTORY] [-- further options of `cgrpo run`]

Runs the very command of `make train` as a child. Memory is the sum of PSS over the child and all its descendants, every
two seconds: PSS shares out pages that several processes map, so that the sum counts each page once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from storage.catalog import query
from storage.errors import RunNotFound

EVERY_S = 2.0
STAGES = """
select stage, count(*) as times, round(sum(seconds), 1) as seconds, round(max(seconds), 1) as longest
from stages where published group by all order by seconds desc
"""
FIRST = "select epoch(min(ended_at)) from stages where epoch(started_at) >= {began}"


def tree(root: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants that are alive."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def pss(processes: list[psutil.Process]) -> dict[str, int]:
    """Return bytes of PSS by process name; a process that ended in between has none."""
    found: dict[str, int] = {}
    for process in processes:
        try:
            name = process.name()
            found[name] = found.get(name, 0) + process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return found


def watch(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command to its end; return seconds, exit code and the largest memory seen, with who had it."""
    began = time.time()
    child = subprocess.Popen(command, env=environment)
    root = psutil.Process(child.pid)
    peak, holders, samples = 0, {}, 0
    while child.poll() is None:
        now = pss(tree(root))
        samples += 1
        if sum(now.values()) > peak:
            peak, holders = sum(now.values()), now
        try:
            child.wait(EVERY_S)
        except subprocess.TimeoutExpired:
            continue
    largest = sorted(holders.items(), key=lambda item: -item[1])[:6]
    return {
        "exit_code": child.returncode,
        "began": began,
        "wall_seconds": round(time.time() - began, 1),
        "peak_pss_gib": round(peak / 2**30, 2),
        "peak_by_process_gib": {name: round(size / 2**30, 2) for name, size in largest},
        "memory_samples": samples,
    }


def stage_seconds(home: Path, name: str, began: float) -> dict[str, Any]:
    """Return the seconds until a first stage was published, and those of each stage. Raises RunNotFound."""
    first = query(home, FIRST.format(began=began), runs=[name]).rows[0][0]
    stages = query(home, STAGES, runs=[name])
    return {
        "seconds_to_first_stage": None if first is None else round(first - began, 1),
        "stages": [dict(zip(stages.columns, row, strict=True)) for row in stages.rows],
    }


def main() -> None:
    """Run, watch, ask the store, print the figures as JSON. Exits with the code of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="train-benchmark", help="name of the run")
    parser.add_argument("--home", type=Path, help="by default a new one: no stage is reused, converted models are")
    parser.add_argument("options", nargs="*", help="further options of `cgrpo run`, after --")
    arguments = parser.parse_args()
    kept = Path(os.environ.get("CGRPO_HOME", ".cgrpo")).resolve()
    home = (arguments.home or Path(tempfile.mkdtemp(prefix="train-benchmark-"))).resolve()
    models = os.environ.get("CGRPO_MODEL_CACHE", str(kept / "models"))
    environment = {**os.environ, "CGRPO_HOME": str(home), "CGRPO_MODEL_CACHE": models}
    cgrpo = str(Path(sys.executable).parent / "cgrpo")
    command = [cgrpo, "run", "critique-grpo", "--profile", "cpu", "--name", arguments.name, *arguments.options]
    figures = watch(command, environment)
    try:
        figures |= stage_seconds(home, arguments.name, figures.pop("began"))
    except RunNotFound as error:
        sys.exit(f"{error.message}: the command made no run (exit code {figures['exit_code']})")
    print(json.dumps({"command": command[1:], "cpus": os.cpu_count(), **figures}, indent=2))
    print(f"data: {home}", file=sys.stderr)
    sys.exit(figures["exit_code"])


if __name__ == "__main__":
    main()
