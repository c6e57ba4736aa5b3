"""Micro-batches: what goes where, and that packing rows with one prompt changes nothing but the work."""

from dataclasses import replace

import pytest
import torch
from tiny_model import build_tiny_model
from training_samples import build_request, build_samples, without_advantage

from cgrpo_core.aggregation import Denominators, denominators
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import policy_loss
from cgrpo_core.params import LossParams
from tasks.engines.micro_batch import build_micro_batch, computed_tokens, pack_by_prompt, pack_length
from tasks.engines.policy_module import load_policy_module

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    directory = build_tiny_model(tmp_path_factory.mktemp("tiny"))
    return load_policy_module(str(directory), dtype=torch.float32, chunk_tokens=7, gradient_checkpointing=False)


def sample(tokens, prompt=(1, 2, 3)):
    return replace(
        build_samples()[0],
        prompt_token_ids=prompt,
        token_ids=tokens,
        sampling_logprobs=tuple(-float(t) for t in tokens),
    )


def logprobs_by_row(module, packs):
    batch = build_micro_batch(packs, CPU)
    logprobs, _, _ = module(*batch.inputs(), 1.0, False)
    return {s.sample_id: logprobs[row, : len(s.token_ids)] for row, s in enumerate(s for pack in packs for s in pack)}


def test_rows_with_one_prompt_share_it_up_to_the_bound():
    rows = [sample((4, 5)), sample((6,), prompt=(9,)), sample((7, 8, 9)), sample((1, 1))]
    assert pack_by_prompt(rows, 8) == [(rows[0], rows[2]), (rows[1],), (rows[3],)]
    assert pack_length((rows[0], rows[2])) == 8
    assert pack_by_prompt(rows, 0) == [(row,) for row in rows]


def test_a_completion_sees_its_prompt_and_itself_and_is_predicted_from_the_token_before():
    batch = build_micro_batch([(sample((4, 5)), sample((7,)))], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 7] + [0] * 26]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3] + [0] * 26]
    assert batch.taken_at.tolist() == [[2, 3], [2, 0]]
    assert batch.targets.tolist() == [[4, 5], [7, 0]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.sampling_logprobs.tolist() == [[-4.0, -5.0], [-7.0, 0.0]]
    assert batch.shared_prompts.lengths == [3, 2, 1, 26]
    like = torch.zeros(1)
    assert batch.shared_prompts.after_prompt(2, 3, like).tolist() == [[0, 0, 0, 0, -torch.inf], [0, 0, 0, 0, 0]]


def test_packs_stand_in_one_sequence_that_is_filled_up():
    batch = build_micro_batch([(sample((4, 5)), sample((7,))), (sample((6,), prompt=(9, 9)),)], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 9, 9, 6] + [0] * 23]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2] + [0] * 23]
    assert batch.taken_at.tolist() == [[2, 3], [2, 0], [7, 0]]
    assert (batch.shared_prompts.lengths, batch.shared_prompts.packs) == ([3, 2, 1, 2, 1, 23], [3, 2, 1])


def test_padding_is_counted_where_there_is_some():
    long, short = sample((4, 5, 6)), sample((7,))
    assert computed_tokens([(long,), (short,)]) == (12, 2)
    assert computed_tokens([(long, short)]) == (32, 25)
    assert computed_tokens([(long, short), (sample((6,), prompt=(9,)),)]) == (32, 23)
    assert computed_tokens([(sample((4,) * 28), short)]) == (32, 0)
    assert build_micro_batch([(sample((4,) * 28), short)], CPU).shared_prompts.packs == [3]
    assert computed_tokens([]) == (0, 0)


def test_rows_alone_are_plainly_causal():
    batch = build_micro_batch([(sample((4, 5)),), (sample((7,), prompt=(8, 8)),)], CPU)
    assert batch.shared_prompts is None
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [8, 8, 7, 0, 0]]
    assert batch.taken_at.tolist() == [[2, 3], [6, 0]]


def test_packing_and_padding_change_no_logprob(module):
    samples = build_samples()
    packed = logprobs_by_row(module, pack_by_prompt(samples, 1000))
    for row in samples:
        alone = logprobs_by_row(module, [(row,)])[row.sample_id]
        torch.testing.assert_close(packed[row.sample_id], alone, atol=2e-6, rtol=0)


def test_packs_of_a_model_with_a_sliding_window_are_refused(module):
    from tasks.engines.shared_prompts import SharedPrompts, attention

    query = torch.zeros(1, 4, 3, 8)
    with pytest.raises(ValueError, match="packed_tokens"):
        attention(None, query, query, query, None, shared_prompts=SharedPrompts([[2, 1]]), sliding_window=4)


def test_packing_changes_no_gradient(module):
    def gradient(packed_tokens):
        module.zero_grad()
        batch = build_micro_batch(pack_by_prompt(build_samples(), packed_tokens), CPU)
        logprobs, entropy, _ = module(*batch.inputs(), 1.0, True)
        rows = LossRows(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            entropy=entropy,
            advantages=batch.advantages,
            weights=batch.weights,
            off_policy=batch.off_policy,
            mask=batch.mask,
        )
        terms = policy_loss(rows, LossParams(), Denominators(losses=30.0, entropy=30.0))
        terms.loss.backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    torch.testing.assert_close(gradient(1000), gradient(0), atol=1e-6, rtol=1e-4)


def test_a_rank_without_rows_runs_a_dummy_that_counts_nothing(module):
    batch = build_micro_batch([], CPU)
    logprobs, _, _ = module(*batch.inputs(), 1.0, False)
    assert not batch.mask.any()
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("change", [{"token_ids": ()}, {"prompt_token_ids": ()}, {"sampling_logprobs": (0.0,) * 99}])
def test_a_row_that_cannot_be_trained_on_is_refused_by_name(change):
    with pytest.raises(ValueError, match="s0-0"):
        build_micro_batch([(replace(build_samples()[0], **change),)], CPU)


def test_zero_advantage_rows_are_left_out_but_their_groups_count():
    from tasks.engines.update_steps import Split, plan_mini_batches

    split = Split(rank=0, world_size=1, packed_tokens=0)
    (batch,) = plan_mini_batches(build_request(build_samples()), split)
    trained = [s.sample_id for micro in batch.micro_batches for pack in micro for s in pack]
    assert (batch.size.prompts, batch.size.rows) == (3, 12)
    assert sorted(trained) == [f"s{group}-{row}" for group in (0, 2) for row in range(4)]
    assert plan_mini_batches(build_request(without_advantage(build_samples())), split) == []


def test_every_rank_gets_the_same_number_of_micro_batches_and_no_row_is_lost():
    from tasks.engines.update_steps import Split, plan_mini_batches

    request = build_request(build_samples(), tokens_per_micro_batch=70, mini_batch_prompts=1)
    plans = [plan_mini_batches(request, Split(rank=r, world_size=3, packed_tokens=0)) for r in range(3)]
    for step in zip(*plans, strict=True):
        assert len({len(batch.micro_batches) for batch in step}) == 1
        assert sum(len(pack) for batch in step for micro in batch.micro_batches for pack in micro) == 4


def test_a_model_with_more_than_a_head_behind_its_hidden_states_is_refused(tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    from cgrpo_core.errors import UserError

    directory = build_tiny_model(tmp_path / "tiny")
    plain = LlamaForCausalLM.forward

    def scaled(self, *arguments, **named):
        output = plain(self, *arguments, **named)
        output.logits = output.logits * 30
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", scaled)
    with pytest.raises(UserError, match="logits"):
        load_policy_module(str(directory), dtype=torch.float32, chunk_tokens=7, gradient_checkpointing=False)


@pytest.mark.parametrize(
    "loss",
    [
        LossParams(),
        LossParams(kind="grpo", aggregate="token_mean", clip_high=0.28),
        LossParams(kind="grpo", ratio="sequence", aggregate="sequence_mean", clip_low=3e-4, clip_high=4e-4),
        LossParams(ratio="cispo", clip_low=None, clip_high=4.0, entropy_coef=0.1, entropy_aggregate="token_mean"),
    ],
    ids=["paper", "token_mean", "sequence", "cispo"],
)
def test_the_gradients_of_all_ranks_add_up_to_the_same_whatever_their_number(module, loss):
    from tasks.engines.update_steps import Split, plan_mini_batches

    def gradient(world_size, tokens):
        module.zero_grad()
        request = replace(build_request(build_samples(), tokens_per_micro_batch=tokens), loss=loss)
        for rank in range(world_size):
            (step,) = plan_mini_batches(request, Split(rank=rank, world_size=world_size, packed_tokens=0))
            for packs in step.micro_batches:
                batch = build_micro_batch(packs, CPU)
                logprobs, entropy = module(*batch.inputs(), 1.0, True)[:2]
                rows = LossRows(
                    logprobs=logprobs,
                    old_logprobs=logprobs.detach(),
                    entropy=entropy,
                    advantages=batch.advantages,
                    weights=batch.weights,
                    off_policy=batch.off_policy,
                    mask=batch.mask,
                )
                policy_loss(rows, loss, denominators(loss, step.size)).loss.backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    whole = gradient(1, 1000)
    assert whole.norm() > 1e-4
    for world_size, tokens in ((2, 60), (3, 30), (9, 1000)):
        torch.testing.assert_close(gradient(world_size, tokens), whole, atol=1e-6, rtol=1e-4)
