"""Work that need not be done is not done: what a whole run asked of its engines, verifier and tokenizer, counted."""

from collections import Counter

import pytest
from fake_run import fake_inputs, fake_run

from cgrpo_core.params import VerifyParams
from cgrpo_core.records import TrainingSample
from storage.artifacts import Store
from storage.schemas import RECORDS
from tasks import verifier_pool
from tasks.engines.fake import FakeSampler, FakeTrainer
from tasks.engines.protocol import PolicyRef
from tasks.verifier_pool import Case, VerifierPool, verify_all


class CountingSampler(FakeSampler):
    """A sampler that counts the weights it reads."""

    def __init__(self, reply) -> None:
        super().__init__(reply)
        self.loaded: list[str] = []

    def load(self, policy, weights_dir):
        self.loaded.append(policy.weights_sha256)
        return super().load(policy, weights_dir)


@pytest.fixture
def engines(monkeypatch):
    """The engines of a run whose responses are what `reply` says."""

    def start(reply):
        sampler, trainer = CountingSampler(reply), FakeTrainer()

        def lease(home, declaration, base, policy, rebuild=None):
            wanted = PolicyRef(policy_version=policy.policy_version, weights_sha256=policy.weights_sha256)
            if sampler.held() != wanted:
                sampler.load(wanted, str(home / policy.weights if policy.weights else base))
            return sampler

        monkeypatch.setattr("tasks.policies.lease_sampler", lease)
        monkeypatch.setattr("tasks.policies.lease_trainer", lambda home, declaration, base: trainer)
        monkeypatch.setattr("tasks.update.model_weights_digest", lambda directory: "0" * 64)
        return sampler

    return start


def rows_of(home, plan, record):
    store = Store(home)
    return [
        row
        for stage in plan.stages
        for output, name in stage.outputs.items()
        if name == record
        for row in store.read(stage.key, output, RECORDS[record])
    ]


def test_no_critique_and_no_refinement_where_the_gate_forbids_them(engines, tmp_path):
    """Every response is right, or at least one of each group of three: half of the seeds give the right answer."""
    inputs = fake_inputs(tmp_path)
    sampler = engines(lambda request, policy: "1234"[request.seed % 4])
    plan = fake_run(tmp_path, [*inputs, "refine.gate=zero_correct"])
    right = {verdict.subject_id for verdict in rows_of(tmp_path, plan, "Verdict") if verdict.correct}
    solved = {row.group_id for row in rows_of(tmp_path, plan, "Response") if row.response_id in right}
    critiqued = {row.response_id for row in rows_of(tmp_path, plan, "Critique")}
    refined = {row.group_id for row in rows_of(tmp_path, plan, "Refinement")}
    assert solved
    assert refined
    assert not refined & solved
    responses = rows_of(tmp_path, plan, "Response")
    assert not any(row.response_id in critiqued for row in responses if row.group_id in solved)
    asked = Counter(name for call in sampler.calls for name in call)
    assert {asked[row.response_id] for row in responses} == {1}  # and nothing was sampled twice
    assert {asked[row.refinement_id] for row in rows_of(tmp_path, plan, "Refinement")} == {1}


def test_the_engine_is_not_even_leased_where_nothing_is_to_be_refined(engines, tmp_path):
    inputs = fake_inputs(tmp_path)
    sampler = engines(lambda request, policy: "1")
    plan = fake_run(tmp_path, [*inputs, "refine.gate=never"])
    sampling = [stage for stage in plan.stages if stage.stage in ("rollout", "evaluate", "evaluate_base")]
    assert len(sampler.calls) == len(sampling)


def test_weights_are_read_once_for_each_policy_however_many_stages_sample_from_it(engines, tmp_path):
    inputs = fake_inputs(tmp_path)
    sampler = engines(lambda request, policy: "1234"[request.seed % 4])
    plan = fake_run(tmp_path, inputs)
    versions = [policy.weights_sha256 for policy in rows_of(tmp_path, plan, "Policy")]
    assert len(sampler.calls) > len(sampler.loaded) > 1
    assert len(sampler.loaded) == len(set(sampler.loaded)) <= len(set(versions))


def test_no_text_is_tokenized_but_prompts(engines, tmp_path, monkeypatch):
    """Of what was sampled the token ids are kept; only the stages that write prompts have a tokenizer at all."""
    inputs = fake_inputs(tmp_path)
    engines(lambda request, policy: "1234"[request.seed % 4])
    for module in ("tasks.rollout", "tasks.verify", "tasks.select", "tasks.advantage", "tasks.update"):
        assert not hasattr(__import__(module, fromlist=["x"]), "load_tokenizer")
    plan = fake_run(tmp_path, inputs)
    sampled = {row.response_id: row.token_ids for row in rows_of(tmp_path, plan, "Response")}
    sampled |= {row.refinement_id: row.token_ids for row in rows_of(tmp_path, plan, "Refinement")}
    trained: list[TrainingSample] = rows_of(tmp_path, plan, "TrainingSample")
    assert trained
    assert all(row.token_ids == sampled[row.sample_id] for row in trained)


def test_answers_that_are_alike_are_judged_once_and_each_has_its_verdict(monkeypatch):
    asked: list[str] = []
    judge = VerifierPool.judge_case

    def counted(self, case, params):
        asked.append(case.subject_id)
        return judge(self, case, params)

    monkeypatch.setattr(verifier_pool.VerifierPool, "judge_case", counted)
    texts = ["4", "5", "4", "4", "5"]
    cases = [Case(subject_id=f"r{n}", text=text, ground_truth="4") for n, text in enumerate(texts)]
    cases.append(Case(subject_id="other", text="4", ground_truth="5"))
    verdicts = verify_all(cases, VerifyParams())
    assert sorted(asked) == ["other", "r0", "r1"]
    assert [verdict.subject_id for verdict in verdicts] == [case.subject_id for case in cases]
    assert [verdict.correct for verdict in verdicts] == [True, False, True, True, False, False]
    assert [verdict.elapsed_ms > 0 for verdict in verdicts] == [True, True, False, False, False, True]
