"""A Ray of its own for the tests of engines, on loopback, ended with the module."""

import os

import pytest
from tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def local_ray():
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=2,
        namespace="cgrpo",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """The directory of a tiny random model."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def base(model_dir):
    """Policy 0 of that model."""
    from cgrpo_core.weights import weights_digest
    from tasks.engines.export import read_tensors
    from tasks.engines.protocol import PolicyRef

    digest = weights_digest(read_tensors(model_dir / "model.safetensors").items())
    return PolicyRef(policy_version=0, weights_sha256=digest)


@pytest.fixture(scope="session")
def process_group():
    """This process as the only rank of a trainer; once a session, for DeepSpeed keeps the first group that it saw."""
    import torch

    from tasks.engines.trainer_options import TrainerOptions
    from tasks.engines.trainer_rank import TrainerRank
    from tasks.engines.zero import leave_process_group

    before, threads = dict(os.environ), torch.get_num_threads()
    joiner = TrainerRank(0, 1, "", TrainerOptions())
    joiner.join(joiner.meeting_file())
    yield
    leave_process_group()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)
