"""Ray hears of the function that runs tasks once for each set of options, however many tasks there are."""

from types import SimpleNamespace

import pytest
from prefect import task
from prefect_ray import task_runners
from prefect_ray.context import remote_options

from flows import task_runner


class Remote:
    """A remote function of a Ray that is not there."""

    def options(self, **named):
        return SimpleNamespace(remote=lambda *upstream, **arguments: (named["name"], arguments["parameters"]))


@pytest.fixture
def made(monkeypatch):
    """The (function, options) that Ray was asked to make remote."""
    asked = []
    monkeypatch.setattr(task_runners, "ray", type(task_runners.ray)())
    monkeypatch.setattr(task_runners, "serialize_context", lambda **_: {})
    monkeypatch.setattr(
        task_runner.ray, "remote", lambda **options: lambda function: asked.append((function, options)) or Remote()
    )
    return asked


def test_many_tasks_are_one_remote_function(made):
    runner = task_runner.RayTaskRunner()
    runner._started = True
    futures = []
    for name in ("rollout", "verify", "update"):
        with remote_options(num_cpus=0.1):
            futures.append(runner.submit(task(lambda x: x, name=name), {"x": name}))
    with remote_options(num_cpus=1):
        futures.append(runner.submit(task(lambda x: x, name="other"), {"x": 1}))
    assert [options for _, options in made] == [{"num_cpus": 0.1}, {"num_cpus": 1}]
    assert [future.wrapped_future for future in futures] == [
        ("rollout", {"x": "rollout"}),
        ("verify", {"x": "verify"}),
        ("update", {"x": "update"}),
        ("other", {"x": 1}),
    ]


def test_everything_else_is_ray_itself():
    import ray

    assert task_runners.ray.ObjectRef is ray.ObjectRef
    assert task_runners.ray.get is ray.get
