"""Verdicts to rewards: a fault of the verifier is never a reward of 0."""

import pytest

from cgrpo_core.rewards import is_judged, reward_of


def test_right_is_one_and_wrong_is_zero() -> None:
    assert reward_of(True, "ok") == 1.0
    assert reward_of(False, "ok") == 0.0


def test_an_answer_that_cannot_be_parsed_is_wrong() -> None:
    assert reward_of(False, "unparsable") == 0.0
    assert is_judged("unparsable")


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_what_the_verifier_could_not_judge_has_no_reward(status: str) -> None:
    assert reward_of(False, status) is None
    assert not is_judged(status)


@pytest.mark.parametrize("status", ["unparsable", "timeout", "error"])
def test_correct_without_a_verdict_is_a_contradiction(status: str) -> None:
    with pytest.raises(ValueError, match="cannot be correct"):
        reward_of(True, status)
