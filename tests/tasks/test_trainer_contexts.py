"""Updates that look at rows in the context of their critique, on the real trainer, against plain torch."""

from dataclasses import replace

import pytest
import torch
from training_samples import build_request, build_samples

from cgrpo_core.params import LossParams, ShapingParams
from tasks.engines.export import read_tensors
from tasks.engines.trainer_options import TrainerOptions
from tasks.engines.trainer_rank import TrainerRank

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("process_group")]
PLAIN = {"ratio": "none", "clip_low": None, "clip_high": None}
ICRL = LossParams(**PLAIN, shaping=ShapingParams(kind="context_ratio", cap=1.1), aggregate="token_mean")
SDPO = LossParams(kind="sdpo", **PLAIN, aggregate="token_mean")
SFT = LossParams(kind="sft", **PLAIN, aggregate="token_mean")
LOSSES = [pytest.param(loss, id=name) for name, loss in (("icrl", ICRL), ("sdpo", SDPO), ("sft", SFT))]


def samples_for(loss: LossParams):
    """Contexts on refinements (ICRL), or on the responses of two of the three groups (SDPO)."""
    has_context = (lambda s: s.group_id != "g2") if loss.kind == "sdpo" else (lambda s: s.origin == "refinement")
    return tuple(
        replace(s, context_token_ids=(7, 8, *s.prompt_token_ids, 9) if has_context(s) else ()) for s in build_samples()
    )


def updated(model_dir, base, directory, loss, *, update=None, **options):
    rank = TrainerRank(0, 1, str(model_dir), TrainerOptions(**options))
    rank.load_weights(base, str(model_dir))
    request = replace(build_request(samples_for(loss), **(update or {})), loss=loss)
    report = rank.update(request, base)
    rank.export_weights(str(directory), rank.held())
    return read_tensors(directory / "model.safetensors"), report


def log_softmax_after(model, prompt, tokens):
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


def row_loss(model, s, loss):
    logs = log_softmax_after(model, s.prompt_token_ids, s.token_ids)
    taken = logs.gather(-1, torch.tensor(s.token_ids)[:, None]).squeeze(-1)
    if loss.kind == "sft":
        return -taken.sum()
    if loss.kind == "sdpo":
        if not s.context_token_ids:
            return 0.0 * taken.sum()
        teacher = log_softmax_after(model, s.context_token_ids, s.token_ids).exp().detach()
        p = logs.exp()
        m = (p + teacher) / 2
        return (0.5 * (p * (p / m).log()).sum(-1) + 0.5 * (teacher * (teacher / m).log()).sum(-1)).sum()
    weight = 1.0
    if s.context_token_ids:
        context = log_softmax_after(model, s.context_token_ids, s.token_ids)
        taken_in_context = context.gather(-1, torch.tensor(s.token_ids)[:, None]).squeeze(-1)
        weight = (taken - taken_in_context).exp().detach().clamp(max=loss.shaping.cap)
    return -s.advantage * (weight * taken).sum()


@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_is_the_one_that_plain_torch_computes(model_dir, base, tmp_path, loss):
    from transformers import AutoModelForCausalLM

    got, report = updated(model_dir, base, tmp_path / "w", loss, packed_tokens=100, chunk_tokens=3)
    samples = samples_for(loss)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    total = sum(s.weight * row_loss(model, s, loss) for s in samples) / sum(
        s.weight * len(s.token_ids) for s in samples
    )
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.detach(), atol=2e-6, rtol=0)
    assert report.loss == pytest.approx(total.item(), rel=1e-5)
    trained = {"icrl": 8, "sdpo": 8, "sft": 12}[{"critique_grpo": "icrl"}.get(loss.kind, loss.kind)]
    assert report.samples_trained == trained
    assert (report.divergence_mean is not None) == (loss.kind == "sdpo")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", [{"zero_stage": 2}, {"zero_stage": 3}, {"packed_tokens": 200}])
def test_neither_zero_stage_nor_packing_nor_micro_batches_change_the_weights(model_dir, base, tmp_path, loss, options):
    plain, _ = updated(model_dir, base, tmp_path / "plain", loss, update={"tokens_per_micro_batch": 1000})
    other, _ = updated(
        model_dir,
        base,
        tmp_path / "other",
        loss,
        update={"tokens_per_micro_batch": 20},
        gradient_checkpointing=True,
        **options,
    )
    for name, tensor in plain.items():  # lr is 1e-4; AdamW makes a whole step of a gradient that is all rounding
        torch.testing.assert_close(other[name], tensor, atol=5e-6, rtol=0)


def test_with_several_steps_the_weights_of_icrl_are_those_before_the_first(model_dir, base, tmp_path):
    one, _ = updated(model_dir, base, tmp_path / "a", ICRL, update={"mini_batch_prompts": 1, "lr": 0.0})
    two, report = updated(model_dir, base, tmp_path / "b", ICRL, update={"mini_batch_prompts": 1})
    assert report.optimizer_step == 2
    assert report.shaping_mean is not None
    assert any(not torch.equal(one[name], two[name]) for name in one)
