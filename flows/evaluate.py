"""The deployment cgrpo/evaluate: a policy on benchmarks, as a run of its own that `cgrpo resume` goes on with."""

from pathlib import Path

from prefect import flow

from flows.evaluation_run import new_evaluation
from flows.home import data_home
from flows.train import carry_out


@flow(name="cgrpo", flow_run_name="evaluate {policy}", persist_result=False)
def evaluate(
    policy: str,
    benchmarks: list[str],
    samples: int | None = None,
    profile: str | None = None,
    set: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    file: str = "pipelines.yaml",
) -> str:
    """Evaluate RUN or RUN@VERSION on benchmarks of the catalogue. Return the name of the evaluation's run."""
    home = data_home()
    run = new_evaluation(home, policy, benchmarks, samples=samples, profile=profile, sets=set, file=Path(file))
    carry_out(home, run)
    return run.name
