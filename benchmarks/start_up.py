"""How long it takes from the command to the first token, and where the seconds go.

    python benchmarks/start_up.py [--directory DIRECTORY]

Two runs of one iteration on the tiny model, each with a Prefect server and a Ray of its own; the second one has a warm
page cache and counts. Moments are when something is there, not what it took alone: several things start at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_lab import settings

from storage.catalog import query

SETS = {"run.iterations": 1, "run.chunks": 1, "evaluate.every": 9}
MOMENTS = """
select stage, epoch(started_at) as began, coalesce((metrics->>'lease_seconds')::double, 0) as leased, seconds
from stages where published order by started_at
"""


def one_run(directory: Path, name: str, seed: int) -> dict[str, float]:
    """Return seconds since the command began of each moment."""
    home = directory / "home"
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PREFECT_API_URL")}
    environment |= {"CGRPO_HOME": str(home), "RAY_raylet_start_wait_time_s": "300"}
    command = [str(Path(sys.executable).parent / "cgrpo"), "run", "critique-grpo", "--profile", "cpu", "--name", name]
    command += settings(directory, 1)
    command += [word for key, value in {**SETS, "run.seed": seed}.items() for word in ("--set", f"{key}={value}")]
    began, moments = time.time(), dict[str, float]()
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "starting" in line:
                moments["planned and frozen"] = time.time() - began
            if "server ready" in line:
                moments["Prefect server and local Ray"] = time.time() - began
    if run.returncode:
        sys.exit(f"the run ended with {run.returncode}")
    for stage, started, leased, seconds in query(home, MOMENTS, runs=[name]).rows:
        if started > began and stage == "prompts":
            moments["the first stage of the iteration begins"] = started - began
        if started > began and leased and "engine" not in "".join(moments):
            moments[f"{stage} begins"] = started - began
            moments["engine started, policy loaded"] = started + leased - began
            moments["first tokens, at the latest"] = started + seconds - began
    moments["end of the run"] = time.time() - began
    return moments


def main() -> None:
    """Run twice and print the moments of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="by default a new one")
    directory = (parser.parse_args().directory or Path(tempfile.mkdtemp(prefix="start-up-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for name, seed in (("cold", 1), ("warm", 2)):
        moments = one_run(directory, f"{name}-{int(time.time())}", seed)
        print(name, json.dumps({moment: round(seconds, 1) for moment, seconds in moments.items()}), flush=True)


if __name__ == "__main__":
    main()
