"""The deployments that `cgrpo serve` serves; prefect.yaml declares the same ones for a worker."""

from importlib import import_module

from flows.home import data_home
from flows.server import prefect_server
from flows.terminal import say

# Name of the deployment (cgrpo/NAME), where its flow is, and an example of its parameters.
DEPLOYMENTS: dict[str, tuple[str, str]] = {
    "train": ("flows.train:cgrpo", "--param pipeline=critique-grpo --param profile=cpu"),
    "resume": ("flows.history_flows:resume", "--param run=RUN"),
    "rerun": ("flows.history_flows:rerun", "--param run=RUN --param stage=critique"),
    "audit": ("flows.proof_flows:audit", "--param run=RUN"),
    "evaluate": ("flows.evaluate:evaluate", "--param policy=RUN --param 'benchmarks=[\"math500\"]'"),
}


def serve_deployments(limit: int) -> None:
    """Serve all of them from this process, until Ctrl-C; at most `limit` runs at once."""
    with prefect_server(data_home()) as url:
        from prefect import serve
        from prefect.deployments.runner import RunnerDeployment

        found: list[RunnerDeployment] = []
        for name, (place, _) in DEPLOYMENTS.items():
            module, _, function = place.partition(":")
            found.append(getattr(import_module(module), function).to_deployment(name))
        say(f"serving {', '.join(f'cgrpo/{name}' for name in DEPLOYMENTS)}; in another terminal:\n")
        say(f"  export PREFECT_API_URL={url}")
        for name, (_, parameters) in DEPLOYMENTS.items():
            say(f"  prefect deployment run cgrpo/{name} {parameters}")
        serve(*found, limit=limit, print_starting_message=False)
