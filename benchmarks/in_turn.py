"""The command `cgrpo`, but no two stages at once: chunk by chunk, each waits for the one before. For overlap.py."""

import math
from typing import Any

import flows.train
from flows.cli import main
from flows.submit import submit_stages, wait_for_all
from storage.plans import StagePlan


def submit_in_turn(stages: list[StagePlan], **where: Any) -> list[Any]:
    """Submit and await one stage after the other; what it needs is in the store by then."""
    submitted = []
    for stage in sorted(stages, key=lambda stage: math.inf if stage.chunk is None else stage.chunk):
        one = submit_stages([stage], **where)
        wait_for_all(one)
        submitted += one
    return submitted


flows.train.submit_stages = submit_in_turn
main()
