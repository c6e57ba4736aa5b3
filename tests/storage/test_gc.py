"""Cleaning up removes what no run needs, says what and why, and never touches what one refers to."""

from pathlib import Path

import pytest
from storage_rows import a_manifest, a_plan, a_policy, a_stage, key_of, update_metrics

from cgrpo_core.records import Policy, UpdateMetrics
from storage.artifacts import Store
from storage.errors import RunBusy, RunCorrupt
from storage.gc import collect, find_garbage
from storage.plans import InputRef, Plan, StagePlan
from storage.policies import publish_directory
from storage.runs import HomeLock, RunLock, create_run

OUTPUTS = {"policy": "Policy", "metrics": "UpdateMetrics"}


def chain(updates: int, *, keep: int = 2, name: str = "update") -> Plan:
    """A plan of so many updates, each read by the next."""
    stages: list[StagePlan] = []
    for number in range(1, updates + 1):
        inputs = {"samples": (InputRef(key=key_of(f"samples {number}"), output="samples"),)}
        if stages:
            inputs["policy"] = (InputRef(key=stages[-1].key, output="policy"),)
        stages.append(a_stage(name, OUTPUTS, number, inputs=inputs))
    plan = a_plan(*stages)
    return Plan(
        pipeline=plan.pipeline, config={"params": {"checkpoint": {"keep": keep}}, "graph": {}}, stages=plan.stages
    )


def publish(home: Path, stage: StagePlan) -> None:
    inputs = {name: [f"{ref.key}/{ref.output}" for ref in refs] for name, refs in stage.inputs.items()}
    manifest = a_manifest(stage.key, stage=stage.stage, iteration=stage.iteration, chunk=None, inputs=inputs)
    tables = {"policy": (Policy, [a_policy()]), "metrics": (UpdateMetrics, [update_metrics()])}
    Store(home).publish(manifest, tables)
    for kind in ("weights", "checkpoints"):
        publish_directory(home, kind, stage.key, lambda path: (path / "model").write_bytes(b"weights") and None)


def published(home: Path, plan: Plan, name: str = "run") -> Plan:
    create_run(home, name=name, plan=plan, options={})
    for stage in plan.stages:
        publish(home, stage)
    return plan


def found(home: Path) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for item in find_garbage(home):
        assert item.bytes > 0
        kinds.setdefault(item.kind, set()).add(Path(item.path).name)
    return kinds


def test_a_run_keeps_all_artifacts_its_newest_weights_and_its_checkpoints(tmp_path: Path) -> None:
    keys = [stage.key for stage in published(tmp_path, chain(5, keep=3)).stages]
    assert found(tmp_path) == {"weights": set(keys[:3]), "checkpoint": set(keys[:2])}
    removed = collect(tmp_path, find_garbage(tmp_path))
    assert removed > 0
    assert found(tmp_path) == {}
    assert all(Store(tmp_path).has(key) for key in keys)
    assert {path.name for path in (tmp_path / "weights").iterdir()} == set(keys[3:])


def test_what_one_run_keeps_stays_though_another_has_superseded_it(tmp_path: Path) -> None:
    long = published(tmp_path, chain(4, keep=1))
    fork = Plan(pipeline="p", config=long.config, stages=long.stages[:2])
    create_run(tmp_path, name="fork", plan=fork, options={}, parent="run")
    keys = [stage.key for stage in long.stages]
    assert found(tmp_path) == {"checkpoint": {keys[0], keys[2]}}


def test_an_artifact_of_no_run_goes_and_one_that_a_run_reads_from_outside_its_plan_stays(tmp_path: Path) -> None:
    parent = chain(3)
    for stage in parent.stages:
        publish(tmp_path, stage)
    early = a_stage("rollout", {}, 3, inputs={"policy": (InputRef(key=parent.stages[1].key, output="policy"),)})
    create_run(tmp_path, name="early", plan=a_plan(early), options={})
    assert found(tmp_path)["artifact"] == {parent.stages[2].key}


def test_leftovers_of_interrupted_publishes_go(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "abc.123").mkdir(parents=True)
    (tmp_path / "tmp" / "abc.123" / "half.parquet").write_bytes(b"half")
    assert found(tmp_path) == {"leftover": {"abc.123"}}
    assert collect(tmp_path, find_garbage(tmp_path)) == 4
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_is_removed_while_a_run_goes_on_and_no_run_starts_meanwhile(tmp_path: Path) -> None:
    published(tmp_path, chain(4))
    garbage = find_garbage(tmp_path)
    with RunLock(tmp_path, "run"), pytest.raises(RunBusy, match="a run is going on"):
        collect(tmp_path, garbage)
    assert find_garbage(tmp_path) == garbage
    with HomeLock(tmp_path, alone=True):
        with pytest.raises(RunBusy, match="cgrpo gc"):
            RunLock(tmp_path, "run").__enter__()
        with pytest.raises(RunBusy, match="cgrpo gc"):
            create_run(tmp_path, name="other", plan=chain(1), options={})
    with RunLock(tmp_path, "run"):
        pass


def test_what_has_become_referred_to_since_it_was_found_is_left(tmp_path: Path) -> None:
    plan = chain(2)
    for stage in plan.stages:
        publish(tmp_path, stage)
    garbage = find_garbage(tmp_path)
    create_run(tmp_path, name="run", plan=plan, options={})
    assert collect(tmp_path, garbage) == 0
    assert all(Store(tmp_path).has(stage.key) for stage in plan.stages)


def test_a_run_that_cannot_be_read_may_refer_to_anything_so_nothing_is_removed(tmp_path: Path) -> None:
    published(tmp_path, chain(3))
    (tmp_path / "runs" / "run" / "plan.json").write_text("{")
    with pytest.raises(RunCorrupt):
        find_garbage(tmp_path)


def test_an_empty_home_has_no_garbage(tmp_path: Path) -> None:
    assert find_garbage(tmp_path / "nothing") == []
