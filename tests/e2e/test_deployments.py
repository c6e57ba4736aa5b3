"""`prefect deployment run cgrpo/train` in both ways: served by `cgrpo serve`, and by a worker of a work pool."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]
PATIENCE_S = 240


def prefect(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_deployment(lab, environment: dict[str, str], name: str) -> None:
    sets = [f'"{setting}"' for setting in [*lab.sets, "run.iterations=1"]]
    parameters = ["--param", "pipeline=critique-grpo", "--param", f"name={name}", "--param", f"set=[{', '.join(sets)}]"]
    prefect(environment, "deployment", "run", "cgrpo/train", *parameters)
    deadline = time.monotonic() + PATIENCE_S
    while not (lab.home / "runs" / name / "attempts" / "1.json").exists() or lab.status(name)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert lab.status(name)["state"] == "completed", lab.status(name)


def watch_deployment(environment: dict[str, str], deployment: str, **parameters: str) -> None:
    """Run a deployment and wait for it; the command fails where the flow run fails."""
    given = [word for name, value in parameters.items() for word in ("--param", f"{name}={value}")]
    prefect(environment, "deployment", "run", deployment, "--watch", *given)


def evaluate_by_deployment(lab, name: str, rows: Path) -> None:
    rows.write_text("".join(json.dumps({"question": f"{k} and 1?", "answer": k % 4 + 1}) + "\n" for k in range(6)))
    sets = json.dumps([f"benchmarks.gsm8k.path={rows}", "benchmarks.gsm8k.shards=2"])
    parameters = ["--param", f"policy={name}@1", "--param", 'benchmarks=["gsm8k"]', "--param", f"set={sets}"]
    prefect(lab.environment, "deployment", "run", "cgrpo/evaluate", *parameters)
    deadline = time.monotonic() + PATIENCE_S
    while not lab.sql("select 1 from runs where parent = 'NAME' and state = 'completed'".replace("NAME", name)):
        assert time.monotonic() < deadline, lab.sql("select run, state, error from runs")
        time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_served_deployments_train_and_evaluate(lab, tmp_path):
    log = (tmp_path / "serve.log").open("wb")
    served = subprocess.Popen(
        lab.command("serve"), cwd=ROOT, env=lab.environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while "cgrpo/train" not in prefect(lab.environment, "deployment", "ls"):
            assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
            time.sleep(0.5)
        run_deployment(lab, lab.environment, "served")
        evaluate_by_deployment(lab, "served", tmp_path / "rows.jsonl")
    finally:
        end(served)


def test_a_worker_of_a_process_pool_trains_reruns_resumes_and_audits(lab, tmp_path):
    environment = {**lab.environment, "CGRPO_PROJECT": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    prefect(environment, "work-pool", "create", "--type", "process", "cgrpo", "--overwrite")
    prefect(environment, "deploy", "--all")
    log = (tmp_path / "worker.log").open("wb")
    worker = subprocess.Popen(
        [*PREFECT, "worker", "start", "--pool", "cgrpo"],
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        run_deployment(lab, environment, "pooled")
        watch_deployment(environment, "cgrpo/rerun", run="pooled", stage="critique", name="pooled-again")
        watch_deployment(environment, "cgrpo/resume", run="pooled")
        watch_deployment(environment, "cgrpo/audit", run="pooled-again")
    finally:
        end(worker)
    first, again = lab.status("pooled"), lab.status("pooled-again")
    assert (again["state"], again["weights_sha256"]) == ("completed", first["weights_sha256"])
    assert lab.sql("select parent from runs", "pooled-again") == [{"parent": "pooled"}]
    assert [row for row in lab.prefect("artifacts") if "pooled-again" in f"{row['key']} {row['description']}"]
