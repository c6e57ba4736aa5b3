"""Where a run is placed changes nothing that it learns: replicas, ranks, chunks, a cluster or a Ray of its own."""

import os
import subprocess

import pytest
from safetensors.torch import load_file

from storage.artifacts import Store
from storage.runs import read_plan

pytestmark = pytest.mark.e2e
LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
SETTINGS = ("run.seed=23", "run.iterations=1", "optimizer.lr=1e-4")


def elsewhere(lab, home):
    return type(lab)(home, {**lab.environment, "CGRPO_HOME": str(home)}, lab.sets)


def last_weights(lab, name: str):
    store = Store(lab.home)
    updates = [stage for stage in read_plan(lab.home, name).stages if stage.stage == "update"]
    return load_file(lab.home / store.find(updates[-1].key).directories["weights"] / "model.safetensors")


@pytest.fixture(scope="module")
def plain(lab):
    lab.train("plain", *SETTINGS)
    return lab.status("plain")["weights_sha256"], last_weights(lab, "plain")


def test_two_samplers_give_the_same_weights_digest_as_one(lab, plain, tmp_path):
    other = elsewhere(lab, tmp_path)
    other.train("samplers", *SETTINGS, "engines.sampler.replicas=2")
    assert other.status("samplers")["weights_sha256"] == plain[0]
    other.call("engines", "--stop")


def test_two_ranks_give_the_same_weights_as_one_to_1e_6(lab, plain, tmp_path):
    other = elsewhere(lab, tmp_path)
    other.train("ranks", *SETTINGS, "engines.trainer.replicas=2")
    weights = last_weights(other, "ranks")
    assert weights.keys() == plain[1].keys()
    assert max(float((weights[name] - plain[1][name]).abs().max()) for name in weights) < 1e-6
    other.call("engines", "--stop")


def test_without_a_cluster_or_server_a_run_brings_its_own_and_ends_them(lab, plain, tmp_path):
    import psutil

    environment = {**os.environ, "CGRPO_HOME": str(tmp_path)}
    for variable in ("RAY_ADDRESS", "PREFECT_API_URL"):
        environment.pop(variable, None)
    alone = type(lab)(tmp_path, environment, lab.sets)
    process = alone.start("run", "critique-grpo", "--name", "alone", *alone.settings(*SETTINGS))
    tree, exposed = {process.pid: psutil.Process(process.pid)}, set()
    while process.poll() is None:
        for one in [*tree.values()]:
            try:
                tree |= {child.pid: child for child in one.children()}
                listening = [socket for socket in one.net_connections() if socket.status == psutil.CONN_LISTEN]
            except psutil.NoSuchProcess:
                continue
            exposed |= {(one.name(), *s.laddr) for s in listening if s.laddr.ip not in LOOPBACK}
        try:
            process.wait(timeout=0.3)
        except subprocess.TimeoutExpired:
            continue
    output = process.stdout.read()
    assert process.returncode == 0, output
    assert alone.status("alone")["weights_sha256"] == plain[0]
    assert not exposed
    assert len(tree) > 5
    psutil.wait_procs(list(tree.values()), timeout=20)
    assert [one for one in tree.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
