"""A whole run on fake engines, forked, done again, compared and cleaned up: stage bodies and records are real."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

from cgrpo_core.records import Policy, Response
from flows.audit import audit
from flows.derive import place
from flows.diff import diff
from flows.gates import check_iteration, raise_failed
from flows.history import Derived, freeze, plan_fork, plan_rerun
from flows.new_run import new_run
from storage.artifacts import Store
from storage.gc import collect, find_garbage
from storage.plans import Plan, StagePlan
from storage.policies import complete
from storage.runs import RunState, read_plan, run_state
from storage.sealing import seal_stages
from tasks import policies, stage
from tasks.engines.fake import FakeSampler, FakeTrainer, write_fake_weights
from tasks.engines.protocol import PolicyRef
from tasks.models import model_weights_digest

ROOT = Path(__file__).parents[2]
SETS = ["run.iterations=3", "run.prompts_per_iteration=4", "rollout.group_size=3", "checkpoint.keep=1"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("inputs")
    model = build_tiny_model(directory / "model")
    write_fake_weights(str(model), model_weights_digest(model))
    rows = [f'{{"problem": "{a} and {b}?", "answer": "{(a + b) % 10}"}}\n' for a in range(4) for b in range(4)]
    for name in ("train", "eval"):
        (directory / f"{name}.jsonl").write_text("".join(rows if name == "train" else rows[:2]))
    return [
        f"inputs.base_model={{kind: path, path: {model}}}",
        f"inputs.problems={{kind: jsonl, path: {directory / 'train.jsonl'}}}",
        f"inputs.eval_problems={{kind: jsonl, path: {directory / 'eval.jsonl'}}}",
    ]


@pytest.fixture
def engines(monkeypatch) -> tuple[FakeSampler, FakeTrainer]:
    """One sampler and one trainer, leased as the real ones are: the sampler is given the policy that is asked for."""
    sampler, trainer = FakeSampler(), FakeTrainer()

    def lease_sampler(home: Path, _engine: object, base: Path, policy: Policy, rebuild: Callable[[Policy], str]):
        wanted = PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)
        if sampler.held() != wanted:
            there = policy.weights is not None and complete(home, policy.weights)
            sampler.load(wanted, str(home / policy.weights) if there else rebuild(policy))
        return sampler

    monkeypatch.setattr(policies, "lease_sampler", lease_sampler)
    monkeypatch.setattr(policies, "lease_trainer", lambda *_: trainer)
    return sampler, trainer


def carry_out(home: Path, run: str) -> list[StagePlan]:
    """Run what is left of a run, in plan order; return it."""
    plan, store, ran = read_plan(home, run), Store(home), []
    for one in plan.stages:
        if not store.has(one.key):
            __import__(one.task.partition(":")[0])
            stage._publish(stage.BODIES[one.task], stage.StageContext(one, home, store, plan.config["base_dir"]))
            ran.append(one)
    return ran


def follow(home: Path, derived: Derived, name: str) -> tuple[RunState, set[str]]:
    """Freeze and carry out a fork or rerun; return its state, and the names of the stages that ran."""
    freeze(home, derived, name)
    ran = {one.stage for one in carry_out(home, name)}
    plan = read_plan(home, name)
    for iteration in sorted({one.iteration for one in plan.stages if one.iteration}):
        raise_failed(name, check_iteration(home, name, plan, iteration))
    seal_stages(home, name, plan.stages)
    found = audit(home, name, lambda _: None).findings
    assert {finding["check"] for finding in found} <= {"weights"}, "only the weights are fakes"
    return run_state(home, name), ran


@pytest.fixture
def home(tmp_path: Path, inputs: list[str], engines: object) -> Path:
    """A home with a finished run, called run."""
    file = ROOT / "pipelines.yaml"
    new_run(tmp_path, "critique-grpo", profile="cpu", presets=[], sets=[*inputs, *SETS], name="run", file=file)
    carry_out(tmp_path, "run")
    assert run_state(tmp_path, "run").policy_version == 3
    return tmp_path


def rerun_plan(home: Path, start: str, *sets: str, **more: object) -> Derived:
    return plan_rerun(home, "run", start, **{"iteration": None, "to": None, "reseed": None, "sets": list(sets), **more})


def texts(home: Path, plan: Plan, iteration: int) -> list[str]:
    stages = [one for one in plan.stages if one.stage == "rollout" and one.iteration == iteration]
    return [row.text for one in stages for row in Store(home).read(one.key, "responses", Response)]


def test_a_fork_goes_on_from_the_policy_of_its_iteration_though_its_weights_are_long_gone(home, engines) -> None:
    sampler, _ = engines
    before = run_state(home, "run")
    assert not complete(home, f"weights/{policy_key(home, 1)}")
    sampled = len(sampler.calls)
    state, ran = follow(home, plan_fork(home, "run@1", ["loss.shaping.gamma=0.3"]), "fork")
    assert ran >= {"update", "rollout", "evaluate"}
    assert (state.stages_published, state.policy_version) == (state.stages_total, 3)
    assert state.weights_sha256 != before.weights_sha256
    again = sampler.calls[sampled:]
    kept = [one for one in read_plan(home, "fork").stages if one.stage == "rollout" and (one.iteration or 0) <= 2]
    assert not {row for one in kept for row in ids(home, one)} & {request for call in again for request in call}
    assert run_state(home, "run") == before, "the parent is as it was"


def ids(home: Path, rollout: StagePlan) -> list[str]:
    return [row.response_id for row in Store(home).read(rollout.key, "responses", Response)]


def policy_key(home: Path, iteration: int) -> str:
    return next(s.key for s in read_plan(home, "run").stages if (s.stage, s.iteration) == ("update", iteration))


def test_a_fork_that_only_lasts_longer_is_the_run_that_had_lasted_longer(home) -> None:
    state, ran = follow(home, plan_fork(home, "run@3", ["run.iterations=4"]), "longer")
    assert state.policy_version == 4
    assert {one.iteration for one in read_plan(home, "longer").stages if one.stage == "update"} == {1, 2, 3, 4}
    assert "load_problems" not in ran


def test_other_critiques_of_the_same_responses_differ_from_there_on(home) -> None:
    state, ran = follow(home, rerun_plan(home, "critique", "critique.kind=indicative", to="select"), "early")
    assert not ran & {"prompts", "rollout", "verify", "update"}
    assert state.stages_published == state.stages_total
    found = diff(home, read_plan(home, "run"), read_plan(home, "early"), 0.0)
    assert found.first is not None
    assert (found.first.stage.stage, found.equal) == ("critique", 0)
    assert {one.field for one in found.first.fields} >= {"kind", "text"}


def test_a_salted_rerun_samples_the_same_and_a_reseeded_one_does_not(home) -> None:
    _, ran = follow(home, rerun_plan(home, "rollout", iteration=2), "salted")
    assert "rollout" in ran
    plan, again = read_plan(home, "run"), read_plan(home, "salted")
    assert texts(home, again, 2) == texts(home, plan, 2)
    assert {place(one) for one in plan.stages if one.key not in {s.key for s in again.stages}} >= {("rollout", 2, 0)}
    follow(home, rerun_plan(home, "rollout", iteration=2, reseed=5), "reseeded")
    assert texts(home, read_plan(home, "reseeded"), 2) != texts(home, plan, 2)
    found = diff(home, plan, read_plan(home, "reseeded"), 0.0)
    assert found.first is not None
    assert (found.first.stage.stage, found.first.stage.iteration) == ("rollout", 2)


def test_what_a_cut_off_fork_has_left_is_what_its_plan_says(home) -> None:
    derived = plan_fork(home, "run@2", ["loss.shaping.gamma=0.3"])
    freeze(home, derived, "fork")
    plan, store = read_plan(home, "fork"), Store(home)
    left = [one.key for one in plan.stages if not store.has(one.key)]
    assert [one.key for one in carry_out(home, "fork")] == left
    assert carry_out(home, "fork") == []


def test_after_cleaning_up_every_run_can_still_be_gone_on_with(home) -> None:
    freeze(home, plan_fork(home, "run@1", ["loss.shaping.gamma=0.3"]), "fork")
    collect(home, find_garbage(home))
    assert find_garbage(home) == []
    carry_out(home, "fork")
    assert run_state(home, "fork").policy_version == 3
    assert run_state(home, "run").stages_published == run_state(home, "run").stages_total
    shutil.rmtree(home / "runs" / "run")
    gone = {item.kind for item in find_garbage(home)}
    assert gone >= {"artifact"}
    collect(home, find_garbage(home))
    assert run_state(home, "fork").stages_published == run_state(home, "fork").stages_total
