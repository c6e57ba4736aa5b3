"""The trainer's own code on a GPU: the head against float64, and an update against the same update on the CPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("promised", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropy_and_gradients_are_those_of_float64(dtype, tolerance, promised, temperature):
    from cgrpo_core.logprobs import taken_logprobs

    draw = torch.Generator(device="cuda").manual_seed(3)
    hidden = torch.randn(2, 150, 64, generator=draw, device="cuda", dtype=dtype).requires_grad_()
    head = (torch.randn(1003, 64, generator=draw, device="cuda", dtype=dtype) * 0.3).requires_grad_()
    targets = torch.randint(0, 1003, (2, 150), generator=draw, device="cuda")
    weights = torch.randn(2, 150, generator=draw, device="cuda")
    flat = weights.flatten()
    logprobs, entropy = taken_logprobs(
        hidden,
        head,
        targets,
        temperature=temperature,
        with_entropy=True,
        chunk_tokens=64,
        pull=(lambda values, part: flat[part]) if promised else None,
    )
    found = torch.autograd.grad((logprobs * weights).sum(), (hidden, head))
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    logs = torch.log_softmax(exact[0] @ exact[1].T / temperature, dim=-1)
    expected = logs.gather(-1, targets[..., None]).squeeze(-1)
    for got, true in (
        (logprobs, expected),
        (entropy, torch.special.entr(logs.exp()).sum(-1)),
        *zip(found, torch.autograd.grad((expected * weights).sum(), exact), strict=True),
    ):
        assert (got.double() - true).norm() <= tolerance * true.norm()


def test_an_update_is_that_of_the_cpu_compiled_or_not(tmp_path):
    from tiny_model import build_tiny_model
    from training_samples import build_request, build_samples

    from tasks.engines.protocol import PolicyRef
    from tasks.engines.trainer_options import TrainerOptions
    from tasks.engines.trainer_rank import TrainerRank
    from tasks.models import model_weights_digest

    build_tiny_model(tmp_path / "model", 0)
    base = str(tmp_path / "model")
    policy = PolicyRef(policy_version=0, weights_sha256=model_weights_digest(base))
    reports = {}
    for name, options in {
        "plain": TrainerOptions(on_cpu=False),
        "packed": TrainerOptions(on_cpu=False, packed_tokens=200),
        "compiled": TrainerOptions(on_cpu=False, compile=True),
        "bfloat16": TrainerOptions(on_cpu=False, zero_stage=2, dtype="bfloat16", compile=True),
    }.items():
        rank = TrainerRank(0, 1, base, options)
        if not torch.distributed.is_initialized():
            rank.join(rank.meeting_file())
        rank.load_weights(policy, base)
        reports[name] = rank.update(build_request(build_samples()), policy)
    model = _plain_update(base, build_samples())
    for name, report in reports.items():
        tolerance = 2e-2 if name == "bfloat16" else 1e-4
        assert report.grad_norm == pytest.approx(model, rel=tolerance), name


def _plain_update(base, samples):
    """The norm of the gradient of the same loss from full logits, on the CPU."""
    from training_samples import RESPONSE_TOKENS
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loss = 0.0
    for s in samples:
        ids = torch.tensor([s.prompt_token_ids + s.token_ids])
        logs = model(input_ids=ids).logits[0, len(s.prompt_token_ids) - 1 : -1].log_softmax(-1)
        taken = logs.gather(-1, ids[0, len(s.prompt_token_ids) :, None]).squeeze(-1)
        probs = taken.exp()
        term = probs / (probs + 0.1) if s.origin == "refinement" else (taken - taken.detach()).exp()
        loss = loss - s.weight * s.advantage * term.sum() / (3 * RESPONSE_TOKENS)
    loss.backward()
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
