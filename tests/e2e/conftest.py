"""Real engines on a tiny model: one Ray cluster and one Prefect server for the session, ended by their process ids."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from digit_model import build_digit_model

from flows.server import free_port, healthy, start_server, stop_server

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CLUSTER_START_S = 60


@dataclass(frozen=True)
class Lab:
    """A home, a tiny model and the environment in which `cgrpo` is called as a user would call it."""

    home: Path
    environment: dict[str, str]
    sets: list[str] = field(default_factory=list)
    ray_head: int = 0  # process id of the head of the cluster

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "cgrpo"), *arguments]

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def train(self, name: str, *sets: str, pipeline: str = "critique-grpo") -> subprocess.CompletedProcess[str]:
        done = self.call("run", pipeline, "--name", name, *self.settings(*sets))
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def settings(self, *sets: str) -> list[str]:
        return [word for setting in [*self.sets, *sets] for word in ("--set", setting)]

    def status(self, name: str) -> dict[str, object]:
        return dict(json.loads(self.call("status", name, "--json").stdout))

    def sql(self, query: str, *runs: str) -> list[dict[str, object]]:
        done = self.call("sql", query, "--json", *[word for run in runs for word in ("--run", run)])
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def engine_processes(self, kind: str) -> set[int]:
        """The process ids of the cluster's own engines, "Sampler" or "Trainer"; never those of another Ray."""
        return {
            one.pid
            for one in psutil.Process(self.ray_head).children(recursive=True)
            if one.name().startswith(f"ray::{kind}")
        }

    def prefect(self, path: str, **filters: object) -> list[dict[str, object]]:
        """Ask the Prefect API, as its UI does; 200 rows at most."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}/filter",
            data=json.dumps({**filters, "limit": 200}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return list(json.loads(reply.read()))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that put a tiny model and tiny problems under the `cpu` profile."""
    directory = tmp_path_factory.mktemp("tiny")
    model = build_digit_model(directory / "model")
    answers = {f"{a} and {b}?": str((a + b) % 4 + 1) for a in range(6) for b in range(6)}
    rows = [{"problem": question, "answer": answer, "solution": answer} for question, answer in answers.items()]
    for name, part in (("train", rows[:28]), ("eval", rows[28:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return [
        f"inputs.base_model={{kind: path, path: {model}}}",
        f"inputs.problems={{kind: jsonl, path: {directory / 'train.jsonl'}}}",
        f"inputs.eval_problems={{kind: jsonl, path: {directory / 'eval.jsonl'}}}",
        "run.iterations=2",
        "run.prompts_per_iteration=6",
        "rollout.group_size=3",
        "rollout.max_response_tokens=6",
        "refine.max_response_tokens=6",
        "evaluate.max_response_tokens=6",
        "optimizer.lr=1e-3",
        "engines.sampler.options.kv_cache_gib=0.1",
        "engines.trainer.options.num_threads=1",
    ]


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prefect server of the session's own."""
    process, url = start_server(tmp_path_factory.mktemp("server"))
    deadline = time.monotonic() + 120
    while not healthy(url):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.3)
    yield url
    stop_server(process)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address, and process id of the head, of a Ray cluster that outlives every flow of the session."""
    port = free_port()
    log = (tmp_path_factory.mktemp("ray") / "head.log").open("wb")
    options = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false"]
    options += [f"--object-store-memory={100 * 2**20}", "--disable-usage-stats", "--block"]
    # A key is read where a stage runs: on a cluster that was joined, that is the environment that it was started in.
    environment = {**os.environ, "CGRPO_TEST_CRITIQUE_KEY": "sk-e2e-secret-31415926535"}
    command = [str(BIN / "ray"), "start", *options]
    head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    address = f"127.0.0.1:{port}"
    check = [sys.executable, "-c", "import ray; ray.init(logging_level='error'); ray.shutdown()"]
    deadline = time.monotonic() + CLUSTER_START_S
    while subprocess.run(
        check, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, check=False
    ).returncode:
        assert head.poll() is None
        assert time.monotonic() < deadline
    yield address, head.pid
    head.send_signal(signal.SIGTERM)  # `ray start --block` ends the processes that it started
    try:
        head.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
    log.close()


@pytest.fixture(scope="session")
def lab(
    tmp_path_factory: pytest.TempPathFactory, tiny: list[str], prefect_api: str, ray_cluster: tuple[str, int]
) -> Lab:
    """A lab on the session's cluster: engines are started once and reused by run after run."""
    address, head = ray_cluster
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "CGRPO_HOME": str(home), "PREFECT_API_URL": prefect_api, "RAY_ADDRESS": address}
    return Lab(home, environment, tiny, head)
