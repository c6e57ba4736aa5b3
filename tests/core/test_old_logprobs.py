"""Where the old log-probs of a ratio come from, and what may not be asked for."""

import pytest

from cgrpo_core.learning_params import LossParams, MismatchParams
from cgrpo_core.old_logprobs import first_source, settle_source
from cgrpo_core.params import Params
from cgrpo_core.sampling_params import RolloutParams

AUTO = LossParams(old_logprobs="auto", old_logprobs_gap=1e-3)


@pytest.mark.parametrize("choice", ["trainer", "sampler", "auto"])
def test_one_step_compares_with_its_own_forward_pass_whatever_was_chosen(choice):
    loss = LossParams(old_logprobs=choice)
    assert first_source(loss, 1) == settle_source(loss, "same_pass", 1.0) == "same_pass"
    assert first_source(loss, 0) == "none"


def test_a_loss_without_a_ratio_needs_none_unless_a_mismatch_is_corrected():
    without = {"ratio": "none", "clip_low": None, "clip_high": None}
    assert first_source(LossParams(**without), 4) == "none"
    assert first_source(LossParams(**without, mismatch=MismatchParams(kind="truncated")), 4) == "trainer"


def test_auto_takes_the_samplers_up_to_the_declared_gap_and_says_when_it_did_not():
    assert first_source(AUTO, 2) == "sampler"
    assert settle_source(AUTO, "sampler", 1e-3) == "sampler"
    assert settle_source(AUTO, "sampler", 1.1e-3) == "trainer_for_gap"
    assert settle_source(AUTO, "sampler", None) == "trainer_for_gap"  # nothing was measured
    assert settle_source(LossParams(old_logprobs="sampler"), "sampler", 9.0) == "sampler"
    assert first_source(LossParams(), 2) == settle_source(LossParams(), "trainer", 9.0) == "trainer"


def test_old_log_probs_of_the_sampler_are_refused_where_they_mean_nothing():
    with pytest.raises(ValueError, match="goes with a ratio"):
        LossParams(old_logprobs="sampler", ratio="none", clip_low=None, clip_high=None)
    with pytest.raises(ValueError, match="mismatch none"):
        LossParams(old_logprobs="auto", mismatch=MismatchParams(kind="truncated"))
    with pytest.raises(ValueError, match=r"rollout\.top_p 1"):
        Params(loss=AUTO, rollout=RolloutParams(top_p=0.9))
