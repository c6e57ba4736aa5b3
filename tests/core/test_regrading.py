"""Flips and turned advantages, by hand."""

from cgrpo_core.records import TrainingSample, Verdict
from cgrpo_core.regrading import advantage_changes, is_same_batch, verdict_flips


def verdict(subject_id, correct, status="ok"):
    judged = status in ("ok", "unparsable")
    return Verdict(
        subject_id=subject_id,
        answer="4",
        correct=correct,
        status=status,
        reward=float(correct) if judged else None,
        verifier="v",
        elapsed_ms=1.0,
    )


def sample(sample_id, advantage, weight=0.5):
    return TrainingSample(
        sample_id=sample_id,
        group_id="g",
        origin="response",
        prompt_token_ids=(1,),
        token_ids=(2,),
        sampling_logprobs=(-1.0,),
        reward=0.0,
        advantage=advantage,
        weight=weight,
    )


def test_flips_are_named_by_what_they_were_and_are_and_joined_by_id():
    before = [verdict("a", True), verdict("b", False), verdict("c", False), verdict("d", False, "timeout")]
    after = [verdict("d", True), verdict("c", False, "unparsable"), verdict("b", True), verdict("a", False)]
    flips = [(flip.subject_id, flip.before, flip.after) for flip in verdict_flips(before, after)]
    assert flips == [("a", "right", "wrong"), ("b", "wrong", "right"), ("d", "timeout", "right")]


def test_an_answer_that_is_wrong_in_another_way_is_no_flip():
    assert verdict_flips([verdict("a", False)], [verdict("a", False, "unparsable")]) == []


def test_an_advantage_turns_when_its_sign_does_or_its_row_comes_or_goes():
    before = [sample("up", 0.5), sample("less", 0.5), sample("same", -0.5), sample("gone", -0.5), sample("flat", 0.0)]
    after = [sample("up", -0.5), sample("less", 0.25), sample("same", -0.5), sample("new", 0.5), sample("flat", 0.1)]
    changes = {change.sample_id: change for change in advantage_changes(before, after)}
    assert list(changes) == ["up", "less", "gone", "flat", "new"]
    assert {name for name, change in changes.items() if change.turned} == {"up", "gone", "flat", "new"}
    assert (changes["gone"].after, changes["new"].before) == (None, None)


def test_an_update_is_another_one_when_a_weight_is_and_not_when_the_order_is():
    rows = [sample("a", 0.5), sample("b", -0.5)]
    assert is_same_batch(rows, rows[::-1])
    assert not is_same_batch(rows, [sample("a", 0.5, weight=1.0), sample("b", -0.5)])
