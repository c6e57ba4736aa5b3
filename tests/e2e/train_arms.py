"""Train arm after arm in one process, as `cgrpo run` does in one each: a line of JSON in, a line of JSON
out, behind the mark that is the argument: Ray prints there too."""

import json
import sys
from pathlib import Path

from flows.environment import apply

apply()

from flows.home import data_home  # noqa: E402 - after the environment that Ray and Prefect read when imported
from flows.new_run import new_run  # noqa: E402
from flows.train import cgrpo  # noqa: E402

if __name__ == "__main__":
    for line in sys.stdin:
        arm = json.loads(line)
        fault = None
        try:
            run = new_run(data_home(), file=Path("pipelines.yaml"), **arm)
            cgrpo(pipeline=run.pipeline, name=run.name, resume=run.name)
        except Exception as error:  # noqa: BLE001 - told to the test, which fails with it; the next arm is tried anyway
            fault = f"{type(error).__name__}: {error}"
        print(sys.argv[1] + json.dumps(fault), flush=True)
