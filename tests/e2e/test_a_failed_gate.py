"""A failed gate ends the run with query, value, limit and next command, and stays failed until it is accepted."""

import pytest

pytestmark = pytest.mark.e2e


def test_a_run_stops_at_a_failed_gate_and_goes_on_when_a_person_accepts_it(lab):
    sets = ("run.seed=41", "run.iterations=1", "gates.truncated={limit: -1, then: fail}", "gates.equal_groups.limit=-1")
    done = lab.call("run", "critique-grpo", "--name", "gated", *lab.settings(*sets))
    assert done.returncode == 1
    for word in ("gate truncated failed in iteration 1", "must be <= -1", "select avg(", "--accept truncated"):
        assert word in done.stderr
    assert "gate equal_groups warns in iteration 1" in done.stderr
    assert "Traceback" not in done.stderr
    again = lab.call("resume", "gated")
    assert (again.returncode, lab.status("gated")["state"]) == (1, "failed")
    assert lab.call("resume", "gated", "--accept", "truncatd").returncode == 2
    assert lab.call("resume", "gated", "--accept", "truncated").returncode == 0
    assert lab.status("gated")["state"] == "completed"
    rows = lab.sql("select gate, status, accepted from gates where status in ('warn', 'fail') order by all", "gated")
    assert rows == [
        {"gate": "equal_groups", "status": "warn", "accepted": False},
        {"gate": "truncated", "status": "fail", "accepted": True},
    ]
    table = next(
        artifact for artifact in lab.prefect("artifacts") if str(artifact["key"]).startswith("gated-iteration-1")
    )
    assert "gate equal_groups warns" in str(table["data"])
