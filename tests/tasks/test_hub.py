"""Data sets and models by hub id, downloaded by the hub's own client from a server that speaks its protocol."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import Hub, hub_server
from tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ_DATA = """
import json, sys
from pathlib import Path
from tasks.problems import load
declaration = {"kind": "hf_dataset", "repo": "some/data", "revision": sys.argv[1], "file": sys.argv[2]}
loaded = load(declaration, Path("."))
print(json.dumps([[row.question for row in loaded.problems], [row.reason for row in loaded.rejected]]))
"""
READ_MODEL = """
import sys
from pathlib import Path
from tasks.models import find_model, model_weights_digest, resolve_model
declaration = {"kind": "hf_model", "repo": "some/model", "revision": sys.argv[1]}
assert find_model(declaration, Path("."), Path(".")) is None
directory = resolve_model(declaration, Path("."), Path("."))
assert find_model(declaration, Path("."), Path(".")) == directory
print(model_weights_digest(directory))
"""


def run(program: str, hub: Hub, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its endpoint and its cache when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "HF_HUB_CACHE"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-c", program, COMMIT, *arguments],
        env=environment,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_data_set_is_downloaded_once_by_its_pinned_revision(tmp_path: Path) -> None:
    served, cache = tmp_path / "served", tmp_path / "cache"
    (served / "data").mkdir(parents=True)
    cache.mkdir()
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}, {"answer": "no question"}]
    (served / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with hub_server("some/data", COMMIT, served, "datasets") as hub:
        first = run(READ_DATA, hub, cache, "data/train.jsonl")
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout) == [["1 + 1?", "2 + 2?"], ["no question"]]
        again = run(READ_DATA, hub, cache, "data/train.jsonl")
        assert again.stdout == first.stdout
    downloads = [request for request in hub.asked if request.startswith("GET") and "resolve" in request]
    assert downloads == [f"GET /datasets/some/data/resolve/{COMMIT}/data/train.jsonl"]


def test_a_file_that_the_hub_does_not_have_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with hub_server("some/data", COMMIT, tmp_path, "datasets") as hub:
        done = run(READ_DATA, hub, tmp_path, "absent.jsonl")
    assert done.returncode == 1
    assert "absent.jsonl of the hub data set some/data at 0123456789ab cannot be had" in done.stderr


def test_a_model_is_downloaded_with_the_weights_that_the_hub_has(tmp_path: Path) -> None:
    from tasks.models import model_weights_digest

    cache = tmp_path / "cache"
    cache.mkdir()
    model = build_tiny_model(tmp_path / "model", 0)
    with hub_server("some/model", COMMIT, Path(model), "models") as hub:
        done = run(READ_MODEL, hub, cache)
    assert done.returncode == 0, (done.stderr, hub.asked)
    assert done.stdout.strip() == model_weights_digest(model)
