"""Secrets of the environment are in nothing that a run writes: logs, manifests, artifacts, databases."""

import os
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.e2e
CANARIES = {
    "OPENAI_API_KEY": "sk-canary-3f7a91c0d2e84b56",
    "HF_TOKEN": "hf_canaryQ8w7E6r5T4y3U2i1O0p",
    "CRITIQUE_PASSWORD": "canary-correct-horse-battery",
}


def ray_session(head: int) -> Path:
    """The directory in which the cluster of this session writes its logs."""
    words = [word for child in psutil.Process(head).children(recursive=True) for word in child.cmdline()]
    return next(Path(word.partition("=")[2]) for word in words if word.startswith(("--log_dir=", "--log-dir=")))


def test_no_secret_of_the_environment_is_written_anywhere(lab, tmp_path_factory):
    done = lab.call(
        *("run", "critique-grpo", "--name", "canaries", *lab.settings("run.seed=47", "run.iterations=1")), **CANARIES
    )
    assert done.returncode == 0, done.stderr
    base, logs = tmp_path_factory.getbasetemp(), ray_session(lab.ray_head)
    files = [path for root in (base, logs) for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".db" for path in files), "Prefect's database is among them"
    assert any(path.name == "manifest.json" for path in files)
    for name, secret in CANARIES.items():
        assert secret not in done.stdout + done.stderr, name
        wanted = [secret.encode(), secret.encode("utf-16-le")]
        found = [path for path in files if os.access(path, os.R_OK) and any(w in path.read_bytes() for w in wanted)]
        assert not found, (name, found)
