"""One rank in this process, under each ZeRO stage: what an update does, and what must leave no trace."""

import json
from dataclasses import replace

import pytest
import torch
from training_samples import RESPONSE_TOKENS, build_request, build_samples, without_advantage

from cgrpo_core.errors import UserError
from cgrpo_core.params import LossParams, MismatchParams
from cgrpo_core.weights import weights_digest
from tasks.engines.export import read_tensors
from tasks.engines.protocol import LogprobGapExceeded, PolicyMismatch, PolicyRef
from tasks.engines.trainer_options import TrainerOptions
from tasks.engines.trainer_rank import TrainerRank

STAGES = (0, 1, 2, 3)
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("process_group")]


@pytest.fixture
def start(model_dir, base):
    def started(stage=0, **options):
        rank = TrainerRank(0, 1, str(model_dir), TrainerOptions(zero_stage=stage, **options))
        rank.load_weights(base, str(model_dir))
        return rank

    return started


def update(rank, samples=None, **request):
    samples = build_samples() if samples is None else samples
    return rank.update(build_request(samples, **request), rank.held())


def weights_of(rank, directory):
    rank.export_weights(str(directory), rank.held())
    return read_tensors(directory / "model.safetensors")


def assert_close(left, right, atol=1e-6):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=atol, rtol=0)


def test_an_update_is_the_one_that_plain_torch_computes_from_full_logits(start, model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    samples = build_samples()
    rank = start()
    report = update(rank, samples)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    loss = 0.0
    for s in samples:
        ids = torch.tensor([s.prompt_token_ids + s.token_ids])
        start_at = len(s.prompt_token_ids)
        logs = model(input_ids=ids).logits[0, start_at - 1 : -1].log_softmax(-1)
        taken = logs.gather(-1, ids[0, start_at:, None]).squeeze(-1)
        probs = taken.exp()
        term = probs / (probs + 0.1) if s.origin == "refinement" else (taken - taken.detach()).exp()
        loss = loss - s.weight * s.advantage * term.sum() / (3 * RESPONSE_TOKENS)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    expected = {name: p.detach() for name, p in model.named_parameters()}
    assert_close(weights_of(rank, tmp_path / "w"), expected)
    assert report.status == "ok"
    assert report.loss == pytest.approx(loss.item(), abs=1e-7)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert (report.samples_trained, report.optimizer_step, report.policy.policy_version) == (8, 1, 1)
    assert report.clip_fraction_low == report.clip_fraction_high == 0.0
    assert report.entropy == pytest.approx(torch.tensor(320.0).log().item(), abs=0.3)


@pytest.mark.parametrize(
    "options", [{"stage": s} for s in STAGES[1:]] + [{"packed_tokens": 200}, {"products": "onednn"}]
)
def test_neither_zero_stage_nor_packing_nor_micro_batches_nor_recomputation_change_the_weights(
    start, tmp_path, options
):
    plain, other = start(), start(**options, gradient_checkpointing=True, chunk_tokens=3)
    for _ in range(2):
        update(plain, tokens_per_micro_batch=1000)
        update(other, tokens_per_micro_batch=20)
    assert other.held().policy_version == 2
    assert_close(weights_of(other, tmp_path / "other"), weights_of(plain, tmp_path / "plain"))


def test_an_update_says_how_much_of_what_it_computed_was_padding(start):
    samples = [
        replace(s, token_ids=s.token_ids[:keep], sampling_logprobs=s.sampling_logprobs[:keep])
        for keep, s in enumerate(build_samples(), start=1)
    ]
    padded = update(start(), samples, tokens_per_micro_batch=1000)
    assert 0 < padded.padding_share < 1
    packed = update(start(packed_tokens=1000), samples, tokens_per_micro_batch=1000)
    assert packed.padding_share * sum(len(s.prompt_token_ids + s.token_ids) for s in samples) < 32


@pytest.mark.parametrize("products", ["torch", "onednn"])
def test_an_update_gives_the_same_weights_whatever_the_threads_do(start, base, model_dir, products):
    """Large enough that the gradients of the prompts' last positions, shared by many rows, are added up in parallel."""
    samples, threads = build_samples(rows=200), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rank, digests = start(packed_tokens=2048, products=products), set()
        for _ in range(6):
            rank.load_weights(base, str(model_dir))
            digests.add(update(rank, samples, tokens_per_micro_batch=2048).policy.weights_sha256)
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_gives_a_fresh_trainer_bitwise_the_same_next_update(start, model_dir, tmp_path, stage):
    rank = start(stage)
    for _ in range(2):
        update(rank)
    saved = rank.held()
    rank.save_checkpoint(str(tmp_path / "c"), saved)
    expected = update(rank)
    fresh = TrainerRank(0, 1, str(model_dir), TrainerOptions(zero_stage=stage))
    assert fresh.load_checkpoint(saved, str(tmp_path / "c")) == saved
    times = {"seconds": pytest.approx(0, abs=60), "digest_seconds": pytest.approx(0, abs=60)}
    assert update(fresh) == replace(expected, **times)


def test_a_checkpoint_of_stage_0_goes_on_under_stage_3_and_back(start, model_dir, tmp_path):
    rank = start(0)
    update(rank)
    for number, stage in enumerate((3, 0)):
        rank.save_checkpoint(str(tmp_path / f"c{number}"), rank.held())
        other = TrainerRank(0, 1, str(model_dir), TrainerOptions(zero_stage=stage))
        other.load_checkpoint(rank.held(), str(tmp_path / f"c{number}"))
        update(rank)
        update(other)
        assert_close(weights_of(other, tmp_path / f"o{number}"), weights_of(rank, tmp_path / f"r{number}"))


def test_a_checkpoint_is_plain_tensors_and_scalars(start, tmp_path):
    rank = start()
    rank.save_checkpoint(str(tmp_path / "before"), rank.held())
    update(rank)
    rank.save_checkpoint(str(tmp_path / "after"), rank.held())
    tensors = {"model.safetensors", "rng.safetensors"}
    assert {p.name for p in (tmp_path / "before").glob("*.safetensors")} == tensors
    assert {p.name for p in (tmp_path / "after").glob("*.safetensors")} == tensors | {
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
    }
    state = json.loads((tmp_path / "after" / "state.json").read_text())
    assert (state["optimizer_step"], state["adam_step"], state["scheduler"]["kind"]) == (1, 1, "constant")
    fresh = start()
    fresh.load_checkpoint(PolicyRef(policy_version=0, weights_sha256=rank._digest), str(tmp_path / "after"))
    with pytest.raises(UserError, match=r"state\.json"):
        fresh.load_checkpoint(rank.held(), str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_non_finite_gradients_are_skipped_counted_and_leave_no_trace(start, stage):
    disturbed, calm = start(stage), start(stage)
    update(disturbed), update(calm)
    broken = tuple(replace(s, advantage=float("inf")) if s.sample_id == "s0-0" else s for s in build_samples())
    report = update(disturbed, broken)
    assert (report.status, report.non_finite_steps, report.optimizer_step, report.grad_norm) == (
        "non_finite",
        1,
        1,
        None,
    )
    assert report.policy.policy_version == 2
    assert report.policy.weights_sha256 == calm.held().weights_sha256
    assert update(disturbed).policy.weights_sha256 == update(calm).policy.weights_sha256


@pytest.mark.parametrize("stage", STAGES)
def test_a_sampler_that_disagrees_stops_the_update_before_any_step(start, stage):
    disturbed, calm = start(stage), start(stage)
    held = disturbed.held()
    with pytest.raises(LogprobGapExceeded, match=r"differ by up to .*limits\.logprob_gap_max is 1e-05"):
        update(disturbed, gap=1e-5, tokens_per_micro_batch=20)
    assert disturbed.held() == held
    assert update(disturbed).policy == update(calm).policy


def test_a_sampler_that_disagrees_is_found_before_the_first_of_several_steps(start):
    rank = start()
    with pytest.raises(LogprobGapExceeded):
        update(rank, gap=1e-5, mini_batch_prompts=1)
    assert update(rank).policy == update(start()).policy


def test_equal_rewards_in_all_groups_change_nothing_but_the_version(start, base):
    rank = start()
    report = update(rank, without_advantage(build_samples()))
    assert report.status == "no_gradient"
    assert report.policy == PolicyRef(policy_version=1, weights_sha256=base.weights_sha256)
    assert (report.optimizer_step, report.samples_trained, report.grad_norm, report.loss) == (0, 0, None, 0.0)
    assert report.logprob_gap_max > report.logprob_gap_mean > 0
    with pytest.raises(LogprobGapExceeded):
        update(rank, without_advantage(build_samples()), gap=1e-5)


def test_the_gap_is_measured_on_responses_only(start):
    samples = build_samples()
    honest = []
    for s in samples:
        measured = update(start(), (replace(s, origin="response"),))
        value = -5.8 - measured.kl_to_sampler if s.origin == "response" else 0.0
        honest.append(replace(s, sampling_logprobs=(value,) * len(s.token_ids)))
    report = update(start(), tuple(honest))
    assert report.kl_to_sampler == pytest.approx(0.0, abs=1e-5)


def test_several_mini_batches_step_in_order_against_the_log_probs_from_before(start):
    rank = start()
    report = update(rank, mini_batch_prompts=1, lr=0.05)
    assert (report.optimizer_step, report.status) == (2, "ok")
    assert report.clip_fraction_low + report.clip_fraction_high > 0
    assert report.logprob_gap_max == pytest.approx(update(start()).logprob_gap_max, abs=1e-6)


def honest(samples, model_dir, off=0.0):
    """The same rows with the log-probs that the model gives their tokens after their prompts, all `off` by so much."""
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(model_dir), []
    for s in samples:
        ids = torch.tensor([s.prompt_token_ids + s.token_ids])
        with torch.no_grad():
            logs = model(input_ids=ids).logits[0, len(s.prompt_token_ids) - 1 : -1].log_softmax(-1)
        taken = logs.gather(-1, ids[0, len(s.prompt_token_ids) :, None]).squeeze(-1) + off
        rows.append(replace(s, sampling_logprobs=tuple(taken.tolist())))
    return tuple(rows)


def stepped(rank, samples, **loss):
    request = build_request(samples, mini_batch_prompts=1, lr=0.01)
    return rank.update(replace(request, loss=LossParams(**loss)), rank.held())


@pytest.fixture
def forwards(monkeypatch):
    """How many forward passes without gradient the trainer takes."""
    from tasks.engines.zero import ZeroEngine

    taken, logprobs = [], ZeroEngine.logprobs

    def counted(self, *arguments, **options):
        taken.append(torch.is_grad_enabled())
        return logprobs(self, *arguments, **options)

    monkeypatch.setattr(ZeroEngine, "logprobs", counted)
    return lambda: [taken.count(False), taken.clear()][0]


@pytest.mark.parametrize("stage", [0, 3])
def test_old_log_probs_of_a_sampler_that_agrees_give_the_trainers_update_without_its_pass(
    start, model_dir, tmp_path, forwards, stage
):
    samples = honest(build_samples(), model_dir)
    trainers, samplers, auto = start(stage), start(stage), start(stage)
    assert stepped(trainers, samples).old_logprobs == "trainer"
    assert forwards() > 0
    report = stepped(samplers, samples, old_logprobs="sampler")
    assert (report.old_logprobs, report.optimizer_step, forwards()) == ("sampler", 2, 0)
    assert report.clip_fraction_low + report.clip_fraction_high > 0
    assert_close(weights_of(samplers, tmp_path / "s"), weights_of(trainers, tmp_path / "t"), atol=2e-5)
    assert stepped(auto, samples, old_logprobs="auto").policy == report.policy


def test_auto_takes_the_trainers_own_where_the_sampler_disagrees(start, model_dir, tmp_path):
    far = honest(build_samples(), model_dir, off=0.01)
    trainers, auto, trusting = start(), start(), start()
    report = stepped(auto, far, old_logprobs="auto")
    assert report.old_logprobs == "trainer_for_gap"
    assert report.logprob_gap_max == pytest.approx(0.01, abs=1e-5)
    stepped(trainers, far)
    assert_close(weights_of(auto, tmp_path / "a"), weights_of(trainers, tmp_path / "t"))
    assert stepped(trusting, far, old_logprobs="auto", old_logprobs_gap=0.02).old_logprobs == "sampler"
    assert trusting.held() != auto.held()


def test_rows_that_were_not_sampled_from_the_question_have_the_trainers_old_log_probs(start, model_dir, tmp_path):
    """Their sampling log-probs are given a critique, so they are no old log-probs of the row that is trained."""
    samples = [
        s if s.origin == "response" else replace(s, sampling_logprobs=(-0.1,) * len(s.token_ids))
        for s in honest(build_samples(), model_dir)
    ]
    trainers, samplers = start(), start()
    stepped(trainers, samples, kind="grpo")
    assert stepped(samplers, samples, kind="grpo", old_logprobs="sampler").old_logprobs == "sampler"
    assert_close(weights_of(samplers, tmp_path / "s"), weights_of(trainers, tmp_path / "t"), atol=2e-5)


def test_a_loss_without_a_ratio_computes_no_old_log_probs(start, forwards):
    report = stepped(start(), build_samples(), ratio="none", clip_low=None, clip_high=None)
    assert (report.old_logprobs, report.optimizer_step, forwards()) == ("none", 2, 0)


def test_rows_of_advantage_0_are_trained_on_request_and_change_nothing(start, tmp_path):
    few, every = start(), start()
    assert update(few).samples_trained == 8
    request = replace(build_request(build_samples()), loss=LossParams(trained_rows="all"))
    assert every.update(request, every.held()).samples_trained == 12
    assert_close(weights_of(every, tmp_path / "e"), weights_of(few, tmp_path / "f"))


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_clipped_to_the_norm_of_the_request(start, tmp_path, stage):
    rank = start(stage)
    report = update(rank, max_grad_norm=0.01)
    assert report.grad_norm > 0.1
    rank.save_checkpoint(str(tmp_path / "c"), rank.held())
    moments = torch.cat([t.flatten() for t in read_tensors(tmp_path / "c" / "exp_avg.safetensors").values()])
    assert moments.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_an_exported_policy_is_a_hugging_face_model_with_the_digest_that_was_reported(start, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rank = start()
    policy = update(rank).policy
    rank.export_weights(str(tmp_path / "w"), policy)
    tensors = read_tensors(tmp_path / "w" / "model.safetensors")
    assert weights_digest(tensors.items()) == policy.weights_sha256
    assert "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "w")
    assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "w").chat_template
    with pytest.raises(UserError, match="not empty"):
        rank.export_weights(str(tmp_path / "w"), policy)


def test_another_policy_is_never_worked_on(start, model_dir, base, tmp_path):
    rank = start()
    other = PolicyRef(policy_version=1, weights_sha256=base.weights_sha256)
    with pytest.raises(PolicyMismatch):
        rank.update(build_request(build_samples()), other)
    with pytest.raises(PolicyMismatch):
        rank.export_weights(str(tmp_path / "w"), other)
    assert rank.held() == base
    with pytest.raises(PolicyMismatch, match="of policy 7"):
        rank.load_weights(PolicyRef(policy_version=7, weights_sha256="0" * 64), str(model_dir))
    assert rank.held() is None


def test_an_update_that_fails_half_way_leaves_no_policy_held(start):
    rank = start()
    broken = tuple(replace(s, sampling_logprobs=()) if s.group_id == "g2" else s for s in build_samples())
    with pytest.raises(ValueError, match="log-prob"):
        update(rank, broken)
    assert rank.held() is None


def test_bfloat16_keeps_float32_weights_through_a_checkpoint(start, model_dir, tmp_path):
    rank = start(2, dtype="bfloat16")
    report = update(rank, without_advantage(build_samples()))
    assert report.status == "no_gradient"
    exported = weights_of(rank, tmp_path / "w")
    assert weights_digest(exported.items()) == report.policy.weights_sha256
    assert {t.dtype for t in exported.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "w" / "config.json").read_text())["dtype"] == "bfloat16"
    for _ in range(2):
        update(rank, lr=1e-5)
    saved = rank.held()
    rank.save_checkpoint(str(tmp_path / "c"), saved)
    fresh = TrainerRank(0, 1, str(model_dir), TrainerOptions(zero_stage=2, dtype="bfloat16"))
    fresh.load_checkpoint(saved, str(tmp_path / "c"))
    assert update(fresh, lr=1e-5).policy == update(rank, lr=1e-5).policy


def test_an_entropy_term_trains_on_rows_without_advantage(start, base):
    rank = start()
    request = replace(build_request(without_advantage(build_samples())), loss=LossParams(entropy_coef=0.01))
    report = rank.update(request, rank.held())
    assert (report.status, report.samples_trained) == ("ok", 12)
    assert report.policy.weights_sha256 != base.weights_sha256


def test_the_scaling_of_the_release_gives_each_micro_batch_eight_over_rows(start, model_dir):
    from transformers import AutoModelForCausalLM

    from tasks.engines.update_steps import Split, plan_mini_batches

    loss = LossParams(
        clip_low=None, clip_high=None, entropy_coef=0.01, entropy_aggregate="token_mean", scaling="release"
    )
    samples = tuple(replace(sample, weight=1.0) for sample in build_samples())
    request = replace(build_request(samples, tokens_per_micro_batch=60), loss=loss)
    (step,) = plan_mini_batches(request, Split(rank=0, world_size=1, packed_tokens=0))
    assert len(step.micro_batches) > 2
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    expected = 0.0
    for micro in step.micro_batches:
        terms, entropies = 0.0, []
        for (s,) in micro:
            ids = torch.tensor([s.prompt_token_ids + s.token_ids])
            start_at = len(s.prompt_token_ids)
            logs = model(input_ids=ids).logits[0, start_at - 1 : -1].log_softmax(-1)
            probs = logs.gather(-1, ids[0, start_at:, None]).squeeze(-1).exp()
            ratio = probs / (probs + 0.1) if s.origin == "refinement" else probs / probs.detach()
            terms = terms - s.advantage * ratio.sum() / RESPONSE_TOKENS
            entropies.append(torch.special.entr(logs.exp()).sum(-1))
        expected = expected + 8 / len(samples) * (terms - 0.01 * torch.cat(entropies).mean())
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    rank = start()
    report = rank.update(request, rank.held())
    assert report.loss == pytest.approx(expected.item(), abs=1e-6)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        LossParams(kind="grpo", aggregate="token_mean", clip_high=0.28),
        LossParams(kind="grpo", ratio="sequence", aggregate="sequence_mean", clip_low=3e-4, clip_high=4e-4),
        LossParams(ratio="cispo", clip_low=None, clip_high=4.0, aggregate="token_mean"),
        LossParams(ratio="none", clip_low=None, clip_high=None),
        LossParams(entropy_coef=0.01, entropy_aggregate="token_mean"),
    ],
    ids=["token_mean", "sequence", "cispo", "reinforce", "entropy"],
)
def test_no_loss_depends_on_how_a_step_is_cut(start, tmp_path, loss):
    whole, cut = start(), start(packed_tokens=200)
    for _ in range(2):
        reports = [
            rank.update(replace(build_request(build_samples(), tokens_per_micro_batch=tokens), loss=loss), rank.held())
            for rank, tokens in ((whole, 1000), (cut, 20))
        ]
        assert {report.status for report in reports} == {"ok"}
        assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)
        assert reports[1].loss == pytest.approx(reports[0].loss, abs=1e-6)
    # AdamW makes steps of 1e-4 of the smallest gradients too, so what rounding does to those shows.
    assert_close(weights_of(cut, tmp_path / "cut"), weights_of(whole, tmp_path / "whole"), atol=1e-5)


def test_a_mismatch_correction_reports_its_weights(start):
    rank = start()
    request = replace(
        build_request(build_samples()), loss=LossParams(mismatch=MismatchParams(kind="truncated", cap=1.01))
    )
    report = rank.update(request, rank.held())
    assert 0 < report.mismatch_capped_fraction < 1
    assert 0 < report.mismatch_weight_mean <= 1.01
    assert report.kl_to_reference is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_gradients_of_many_micro_batches_are_added_up_in_float32(start, stage):
    """A bfloat16 sum stands still once what is added is less than 1/256 of it."""
    row = next(sample for sample in build_samples() if sample.advantage != 0)
    norms = {}
    for count in (1, 400):
        rows = tuple(replace(row, sample_id=f"r-{place}") for place in range(count))
        rank = start(stage, dtype="bfloat16")
        norms[count] = rank.update(build_request(rows, tokens_per_micro_batch=1), rank.held()).grad_norm
    assert norms[400] == pytest.approx(400 * norms[1], rel=1e-3)


@pytest.mark.parametrize(("stage", "mini_batch_prompts"), [(0, 64), (0, 1), (2, 64), (3, 64)])
def test_the_logits_of_an_update_are_computed_once(start, monkeypatch, stage, mini_batch_prompts):
    """The backward pass would compute them again if the promised gradient were not the one that arrives."""

    def again(*_):
        raise AssertionError("computed again")

    rank = start(stage)
    monkeypatch.setattr("cgrpo_core.logprobs.logs_again", again)
    assert update(rank, mini_batch_prompts=mini_batch_prompts).status == "ok"


@pytest.mark.parametrize("stage", [0, 3])
def test_the_reference_policy_is_the_base_model_and_stays_what_it_was(start, stage):
    rank = start(stage)
    request = replace(build_request(build_samples(), lr=1e-2), loss=LossParams(kl_coef=0.1))
    first = rank.update(request, rank.held())
    second = rank.update(request, rank.held())
    assert first.kl_to_reference == pytest.approx(0.0, abs=1e-6)
    assert second.kl_to_reference > 1e-3
    assert first.samples_trained == 11  # the refinement of the group of equal rewards has nothing to learn from
    assert update(rank).kl_to_reference is None
