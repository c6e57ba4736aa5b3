"""A run, a rerun of it under another critique and a fork of it: what they share, and where they part."""

import json

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def parent(lab):
    lab.train("parent", "run.seed=41")
    return lab


def keys(lab, run: str) -> dict[str, set[object]]:
    """Stage -> keys; those of the setup and of both iterations."""
    found: dict[str, set[object]] = {}
    for row in lab.sql("select stage, key from stages where published", run):
        found.setdefault(str(row["stage"]), set()).add(row["key"])
    return found


def test_a_rerun_from_critique_shares_the_rollouts_and_writes_other_critiques(parent):
    sets = ["--set", "critique.kind=indicative"]
    foretold = parent.call("rerun", "parent", "--from", "critique", "--iteration", "2", *sets, "--dry-run", "--json")
    assert foretold.returncode == 0, foretold.stderr
    stages = json.loads(foretold.stdout)["stages"]
    done = parent.call("rerun", "parent", "--from", "critique", "--iteration", "2", "--name", "indicative", *sets)
    assert done.returncode == 0, done.stderr
    assert "critique.kind: 'indicative_gt' -> 'indicative'" in done.stderr
    before, after = keys(parent, "parent"), keys(parent, "indicative")
    assert after["rollout"] == before["rollout"]
    assert len(after["critique"] & before["critique"]) == 1
    ran = {row["key"] for row in stages if row["action"] == "run"}
    assert ran == {key for found in after.values() for key in found} - {k for found in before.values() for k in found}
    kinds = parent.sql("select distinct kind from critiques where iteration = 2", "indicative")
    assert kinds == [{"kind": "indicative"}]
    assert parent.sql("select parent from runs where run = 'indicative'") == [{"parent": "parent"}]


def test_a_fork_at_an_iteration_goes_on_from_its_policy_under_other_settings(parent):
    done = parent.call("fork", "parent@1", "--name", "gamma", "--set", "loss.shaping.gamma=0.3")
    assert done.returncode == 0, done.stderr
    before, after = keys(parent, "parent"), keys(parent, "gamma")
    assert after["rollout"] == before["rollout"], "the policy of iteration 1 is the same, and so are its responses"
    assert len(after["update"] & before["update"]) == 1
    state = parent.status("gamma")
    assert (state["state"], state["policy_version"]) == ("completed", 2)
    assert state["weights_sha256"] != parent.status("parent")["weights_sha256"]
    again = parent.call("resume", "gamma")
    assert again.returncode == 0
    assert parent.status("gamma")["weights_sha256"] == state["weights_sha256"]


def test_a_salted_rerun_of_the_rollout_samples_the_same_and_a_reseeded_one_does_not(parent):
    place = ["--from", "rollout", "--iteration", "2", "--to", "rollout"]
    for name, more in (("salted", []), ("reseeded", ["--reseed", "5"])):
        done = parent.call("rerun", "parent", *place, "--name", name, *more)
        assert done.returncode == 0, done.stderr
    texts = {
        run: [row["text"] for row in parent.sql(f"select text from responses where iteration = 2 and run = '{run}'")]
        for run in ("parent", "salted", "reseeded")
    }
    assert texts["salted"] == texts["parent"]
    assert texts["reseeded"] != texts["parent"]
    assert not keys(parent, "salted")["rollout"] <= keys(parent, "parent")["rollout"]
