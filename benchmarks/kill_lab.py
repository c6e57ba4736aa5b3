"""What kill_everywhere.py kills in: a tiny model, a Prefect server, a Ray cluster that outlives flows, and a home.

Everything listens on loopback, lies below one directory and is ended by process ids that were started here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.server import free_port, healthy, start_server

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
START_S = 90
KEPT = ("engines", "prefect")  # what a wiped home keeps: engines stay on the cluster under the name of the home
STATE = ("artifacts", "weights", "checkpoints", "runs", "tmp")
NO_STAGE = ("ray::Sampler", "ray::Trainer", "ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv")


@dataclass
class Lab:
    """The processes and directories of one configuration: `ranks` of the trainer."""

    directory: Path
    ranks: int
    ray_port: int = field(default_factory=free_port)
    prefect_port: int = field(default_factory=free_port)
    head: subprocess.Popen[bytes] | None = None
    flows: list[subprocess.Popen[bytes]] = field(default_factory=list)
    server: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        """Where the runs keep their data."""
        return self.directory / f"home-{self.ranks}"

    @property
    def reference(self) -> Path:
        """Where the data of the undisturbed run is kept."""
        return self.directory / f"reference-{self.ranks}"

    def environment(self) -> dict[str, str]:
        """Return the environment of every process of the lab."""
        return {
            **os.environ,
            "CGRPO_HOME": str(self.home),
            "PREFECT_HOME": str(self.directory / "prefect-client"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.prefect_port}/api",
            "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def start(self, *arguments: str, program: Path | None = None) -> subprocess.Popen[bytes]:
        """Start the command `cgrpo` as a user would, or a script in its place; its words go to `flow.log`."""
        with (self.directory / "flow.log").open("ab") as log:
            log.write(f"\n=== cgrpo {' '.join(arguments[:2])}\n".encode())
            log.flush()
            command = [sys.executable, str(program)] if program else [str(BIN / "cgrpo")]
            command += arguments
            self.flows.append(subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=log, stderr=log))
            return self.flows[-1]

    def start_services(self) -> None:
        """Start the cluster and the server if they are not there, and return when both answer."""
        if self.head is not None and self.head.poll() is not None:
            self.kill_head()  # it ended by itself, and what it had started may be left
        if self.head is None:
            self.head = _start_head(self)
        if self.server is None:
            self.server, _ = start_server(self.directory / "server", self.prefect_port)
        url, deadline = f"http://127.0.0.1:{self.prefect_port}/api", time.monotonic() + START_S
        while not (healthy(url) and _ray_answers(self)):
            if time.monotonic() > deadline:
                raise TimeoutError("the Ray cluster or the Prefect server of the lab did not start")
            time.sleep(0.2)

    def stop_services(self) -> None:
        """End both, and a flow that is still at work."""
        self.kill_flows()
        self.kill_head()
        self.kill_server()

    def kill_flows(self) -> None:
        """SIGKILL the flows that are still at work."""
        for flow in self.flows:
            flow.kill()
            flow.wait()

    def kill_head(self) -> None:
        """SIGKILL the head of the cluster with everything below it."""
        if self.head is not None:
            kill_all(tree(self.head.pid))
            self.head.wait()
            self.head = None

    def kill_gcs(self) -> None:
        """SIGKILL the process that is the Ray head; `ray start --block` then ends the rest of the cluster."""
        assert self.head is not None
        kill_all([one for one in tree(self.head.pid) if "gcs_server" in name_of(one)])

    def kill_server(self) -> None:
        """SIGKILL the Prefect server."""
        if self.server is not None:
            kill_all(tree(self.server.pid))
            self.server.wait()
            self.server = None

    def engine_processes(self, kind: str) -> list[psutil.Process]:
        """Return the processes of the cluster's engines, "Sampler" or "Trainer", oldest first."""
        found = [one for one in self._below_head() if name_of(one).startswith(f"ray::{kind}")]
        return sorted(found, key=lambda one: (one.create_time(), one.pid))

    def stage_processes(self) -> list[psutil.Process]:
        """Return the processes in which Ray carries out a stage at this moment."""
        names = {one: name_of(one) for one in self._below_head()}
        return [one for one, name in names.items() if name.startswith("ray::") and not name.startswith(NO_STAGE)]

    def _below_head(self) -> list[psutil.Process]:
        return tree(self.head.pid) if self.head is not None else []

    def wipe(self) -> None:
        """Empty the home but for what the running engines are known by."""
        for name in STATE:
            shutil.rmtree(self.home / name, ignore_errors=True)


@contextmanager
def open_lab(directory: Path, ranks: int) -> Iterator[Lab]:
    """Yield a lab with its services up; end them afterwards, whatever happened."""
    lab = Lab(directory, ranks)
    lab.home.mkdir(parents=True, exist_ok=True)
    try:
        lab.start_services()
        yield lab
    finally:
        lab.stop_services()


def settings(directory: Path, ranks: int) -> list[str]:
    """Return the options of `cgrpo run`: the tiny model, and so few problems that iteration 2 begins a new epoch."""
    model, problems = directory / "model", directory / "problems.jsonl"
    if not problems.exists():
        sys.path.insert(0, str(ROOT / "tests"))
        from digit_model import build_digit_model

        build_digit_model(model)
        rows = [{"problem": f"{a} and {b}?", "answer": str((a + b) % 4 + 1)} for a, b in ((0, 1), (1, 2), (2, 2))]
        rows += [{"problem": f"{a} and 3?", "answer": str(a + 1)} for a in range(3)]
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{kind: jsonl, path: {problems}}}"
    pairs = {
        "inputs.base_model": f"{{kind: path, path: {model}}}",
        **{"inputs.problems": source, "inputs.eval_problems": source},
        **{"run.iterations": 2, "run.prompts_per_iteration": 4, "evaluate.every": 1, "optimizer.lr": "1e-3"},
        **{"rollout.group_size": 3, "rollout.max_response_tokens": 6, "refine.max_response_tokens": 6},
        **{"evaluate.max_response_tokens": 6, "engines.sampler.options.kv_cache_gib": 0.1},
        **{"engines.trainer.options.num_threads": 1, "engines.trainer.replicas": ranks},
    }
    return [word for key, value in pairs.items() for word in ("--set", f"{key}={value}")]


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants that are alive."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def name_of(process: psutil.Process) -> str:
    """Return the title of a process, which Ray changes while it works; nothing for one that has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def kill_all(processes: list[psutil.Process]) -> int:
    """SIGKILL these processes; return how many were there to be killed."""
    killed = 0
    for one in processes:
        try:
            one.send_signal(signal.SIGKILL)
            killed += 1
        except psutil.NoSuchProcess:
            continue
    return killed


def _start_head(lab: Lab) -> subprocess.Popen[bytes]:
    options = ["--head", f"--port={lab.ray_port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    options += ["--include-dashboard=false", f"--object-store-memory={100 * 2**20}", "--disable-usage-stats", "--block"]
    with (lab.directory / "ray.log").open("ab") as log:
        return subprocess.Popen(
            [str(BIN / "ray"), "start", *options],
            stdout=log,
            stderr=log,
            env={k: v for k, v in lab.environment().items() if k != "RAY_ADDRESS"},
            start_new_session=True,
        )


def _ray_answers(lab: Lab) -> bool:
    check = [str(BIN / "ray"), "health-check", "--address", f"127.0.0.1:{lab.ray_port}"]
    return subprocess.run(check, capture_output=True, check=False).returncode == 0
