"""A real run is audited clean, every update replayed; then one byte is changed."""

import json

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def proved(lab):
    lab.train("proved", "run.seed=43", "run.chunks=2")
    return lab


def certificate(lab, *options):
    done = lab.call("audit", "proved", "--json", *options)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_run_on_real_engines_is_clean_and_every_update_gives_its_weights_again(proved):
    engines = proved.call("engines").stdout
    code, page, said = certificate(proved, "--replay")
    assert (code, page["findings"], page["notes"]) == (0, [], []), said
    assert [(update["iteration"], update["verdict"]) for update in page["replay"]] == [(1, "equal"), (2, "equal")]
    assert page["weights_sha256"] == proved.status("proved")["weights_sha256"]
    assert page["counts"]["recomputed_rows"] > 100
    assert "replaying 2 updates of run proved" in said
    assert proved.call("engines").stdout == engines, "the replay's own trainer is gone, the run's engines are not"


def test_one_byte_of_one_table_is_found_and_the_table_is_named(proved):
    key = str(proved.sql("select key from stages where stage = 'advantage' order by key", "proved")[0]["key"])
    path = proved.home / "artifacts" / key[:2] / key / "samples.parquet"
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed))
    try:
        done = proved.call("audit", "proved")
    finally:
        path.write_bytes(content)
    assert done.returncode == 1
    assert "DAMAGED" in done.stdout
    assert path.relative_to(proved.home).as_posix() in done.stdout


def test_judging_again_by_the_same_verifier_changes_nothing_and_starts_no_engine(proved):
    done = proved.call("regrade", "proved", "--json", RAY_ADDRESS="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["judged"] > 50
    assert (found["flips"], found["updates_affected"]) == ([], [])


def test_losses_are_compared_on_a_stored_batch_without_a_step(proved):
    before = proved.status("proved")
    done = proved.call("counterfactual", "proved@2", "--preset", "paper_v6,grpo,gspo", "--samples", "3", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights_before"] == found["weights_after"]
    losses = {loss["name"]: loss for loss in found["losses"]}
    assert list(losses) == ["run", "paper_v6", "grpo", "gspo"]
    update = proved.sql("select loss, grad_norm from updates where iteration = 2", "proved")[0]
    for name in ("run", "paper_v6"):
        assert losses[name]["loss"] == pytest.approx(update["loss"], abs=1e-7)
        assert losses[name]["grad_norm"] == pytest.approx(update["grad_norm"], rel=1e-4)
        assert len(losses[name]["row_pulls"]) <= 3
        assert sum(losses[name]["row_losses"].values()) == pytest.approx(losses[name]["loss"], abs=1e-6)
    assert found["cosines"]["run"]["paper_v6"] == pytest.approx(1.0, abs=1e-6)
    assert found["cosines"]["run"]["grpo"] < 1.0
    assert proved.status("proved") == before
