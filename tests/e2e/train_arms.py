"""Train arm after arm in one process, as `cgrpo run` does in one each: a line of JSON in, a line of JSON
out, behind the mark that is the argument: Ray prints there too."""

import json
import sys
from pathlib import Path
from typing import Any

from flows.environment import apply

apply()

from flows.cluster import ray_cluster  # noqa: E402 - after the environment that Ray and Prefect read when imported
from flows.home import data_home  # noqa: E402
from flows.new_run import new_run  # noqa: E402
from flows.train import cgrpo  # noqa: E402


def train(arm: dict[str, Any]) -> str | None:
    """Train an arm; return what went wrong, or None."""
    try:
        run = new_run(data_home(), file=Path("pipelines.yaml"), **arm)
        cgrpo(pipeline=run.pipeline, name=run.name, resume=run.name)
    except Exception as error:  # noqa: BLE001 - told to the test, which fails with it; the next arm is tried anyway
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    with ray_cluster():  # once: Ray ends the workers of a job with it, and new ones import for seconds
        for line in sys.stdin:
            print(sys.argv[1] + json.dumps(train(json.loads(line))), flush=True)
