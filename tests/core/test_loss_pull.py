"""The gradient that is promised before the loss is there: token by token that of the loss, or no promise."""

import dataclasses

import pytest
import torch
from loss_rows import SUCCESSORS, VARIANTS, random_rows, terms_and_gradient

from cgrpo_core.aggregation import Denominators
from cgrpo_core.loss_pull import loss_pull
from cgrpo_core.params import LossParams

DENOMINATOR = 10.0


def promise(rows, params: LossParams, *, on_policy: bool = False, factor: float = 1.0):
    given = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    del given["logprobs"], given["entropy"], given["divergences"]
    given["old_logprobs"] = None if on_policy else rows.old_logprobs
    divide_by = Denominators(losses=DENOMINATOR, entropy=DENOMINATOR)
    return loss_pull(**given, params=params, divide_by=divide_by, factor=factor)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("params", [*VARIANTS, *SUCCESSORS])
def test_a_promise_is_the_gradient_of_the_loss_times_the_factor(params: LossParams, on_policy: bool) -> None:
    rows = random_rows(21)
    if on_policy:
        rows = dataclasses.replace(rows, old_logprobs=rows.logprobs)
    pull = promise(rows, params, on_policy=on_policy, factor=2.0)
    if pull is None:
        assert params.ratio == "sequence" or params.entropy_coef != 0
        return
    _, gradient = terms_and_gradient(rows, params, DENOMINATOR)
    flat = rows.logprobs.flatten()
    cut = 17
    found = torch.cat([pull(flat[:cut], slice(0, cut)), pull(flat[cut:], slice(cut, flat.numel()))])
    torch.testing.assert_close(found.view_as(gradient), 2.0 * gradient, rtol=1e-12, atol=1e-15)


def test_some_losses_are_promised_and_some_are_not() -> None:
    kept = [promise(random_rows(1), variant.values[0]) is not None for variant in VARIANTS]
    assert True in kept
    assert promise(random_rows(1), LossParams(ratio="sequence", aggregate="sequence_mean")) is None
    assert promise(random_rows(1), LossParams(entropy_coef=0.01)) is None
