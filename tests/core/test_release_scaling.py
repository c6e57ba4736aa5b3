"""The trainer's own loss, under scaling `release`, has the gradient of the release's whole update."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cgrpo_core.aggregation import denominators, step_size
from cgrpo_core.loss_rows import LossRows
from cgrpo_core.losses import policy_loss
from cgrpo_core.params import LossParams

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "actor_step.json"
CASES = [
    case
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))
    if case["use_off_policy_loss"] and case["use_dynamic_bsz"]
]


def gradient_of_update(case: dict[str, Any], sizes: list[int]) -> torch.Tensor:
    """Add up the micro-batches of a step, as the trainer does; the entropy of a token is -logprob, as in the case."""
    params = LossParams(
        clip_low=None,
        clip_high=None,
        entropy_coef=case["entropy_coeff"],
        entropy_aggregate="token_mean",
        scaling="release",
    )
    logprobs = torch.tensor(case["log_prob"], dtype=torch.float64).requires_grad_(True)
    mask = torch.tensor(case["response_mask"])
    advantages = torch.tensor(case["advantages"], dtype=torch.float64)
    weights = torch.ones(len(mask), dtype=torch.float64)
    size = step_size(mask.sum(dim=1).tolist(), weights.tolist(), prompts=2, max_response_tokens=mask.shape[1])
    start = 0
    for rows in sizes:
        part = slice(start, start + rows)
        start += rows
        terms = policy_loss(
            LossRows(
                logprobs=logprobs[part],
                old_logprobs=torch.tensor(case["old_log_prob"], dtype=torch.float64)[part],
                advantages=advantages[part, 0],
                weights=weights[part],
                off_policy=torch.tensor(case["prefix_mask"])[part, 0],
                mask=mask[part],
                entropy=-logprobs[part],
            ),
            params,
            denominators(params, size),
        )
        terms.loss.backward()
    assert logprobs.grad is not None
    return logprobs.grad


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_gradient_is_that_of_the_released_update(case: dict[str, Any]) -> None:
    assert case["mini_batch_size"] == len(case["log_prob"])
    expected = torch.tensor(case["grad_log_prob"], dtype=torch.float64)
    torch.testing.assert_close(gradient_of_update(case, case["micro_batch_sizes"]), expected, rtol=1e-8, atol=1e-10)


def test_its_policy_term_is_the_same_for_every_cut_and_its_entropy_term_is_not() -> None:
    case = next(case for case in CASES if len(case["micro_batch_sizes"]) > 1)
    plain = {**case, "entropy_coeff": 0.0}
    rows = len(case["log_prob"])
    torch.testing.assert_close(gradient_of_update(plain, [rows]), gradient_of_update(plain, [1] * rows))
    assert not torch.allclose(gradient_of_update(case, [rows]), gradient_of_update(case, [1] * rows))
