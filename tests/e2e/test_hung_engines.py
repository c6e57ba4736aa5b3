"""An engine that hangs (SIGSTOP) is noticed by its deadline, killed by its process id, and the stage is retried."""

import os
import signal

import psutil
import pytest
from test_recovery import PATIENCE_S, published, wait_until

pytestmark = pytest.mark.e2e
DEADLINES = ("engines.sampler.options.deadline_s=20", "engines.trainer.options.deadline_s=20")


def test_a_stopped_sampler_and_a_stopped_trainer_are_killed_and_the_run_ends_as_if_nothing_had_happened(lab, tmp_path):
    other = type(lab)(tmp_path, {**lab.environment, "CGRPO_HOME": str(tmp_path)}, lab.sets, lab.ray_head)
    name = "hung"
    sets = other.settings("run.seed=43", *DEADLINES)
    process = other.start("run", "critique-grpo", "--name", name, *sets)
    wait_until(lambda: (tmp_path / "runs" / name / "plan.json").exists(), process)
    stopped = []
    for kind, before in (("Sampler", ("prompts", 1)), ("Trainer", ("update", 1))):
        wait_until(lambda before=before: before in published(other, name), process)
        engines = [psutil.Process(pid) for pid in other.engine_processes(kind)]  # those of other homes are older
        stopped.append(max(engines, key=lambda one: one.create_time()))
        os.kill(stopped[-1].pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert not [one for one in stopped if one.is_running()], "nobody else would have ended a stopped process"
    seeds = other.sql("select count(*) n, count(distinct (iteration, problem_id, seed)) d from responses", name)
    assert seeds[0]["n"] == seeds[0]["d"] == 36
    lab.train("not-hung", "run.seed=43")
    assert other.status(name)["weights_sha256"] == lab.status("not-hung")["weights_sha256"]
    other.call("engines", "--stop")
