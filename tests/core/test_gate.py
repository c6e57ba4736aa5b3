"""The gate: which groups are refined, and which only counted."""

from cgrpo_core.gate import groups_to_refine, unjudged_groups
from cgrpo_core.records import Verdict, VerdictStatus
from cgrpo_core.rewards import reward_of


def verdict(outcome: bool | VerdictStatus) -> Verdict:
    status: VerdictStatus = "ok" if isinstance(outcome, bool) else outcome
    correct = outcome is True
    return Verdict(
        subject_id="r",
        answer=None,
        correct=correct,
        status=status,
        reward=reward_of(correct, status),
        verifier="test",
        elapsed_ms=0.0,
    )


VERDICTS = {
    name: [verdict(outcome) for outcome in outcomes]
    for name, outcomes in {
        "all_wrong": [False, False],
        "one_right": [False, True],
        "all_right": [True, True],
        "unparsable": ["unparsable", "unparsable"],
        "partly_judged": ["timeout", False],
        "right_and_timeout": ["timeout", True],
        "unjudged": ["timeout", "error"],
    }.items()
}


def test_only_groups_without_a_correct_response_are_refined() -> None:
    assert groups_to_refine(VERDICTS, "zero_correct") == {"all_wrong", "unparsable", "partly_judged"}


def test_a_group_without_any_verdict_is_not_refined_but_counted() -> None:
    assert unjudged_groups(VERDICTS) == {"unjudged"}
    assert groups_to_refine(VERDICTS, "all") == set(VERDICTS) - {"unjudged"}
    assert groups_to_refine({"unjudged": VERDICTS["unjudged"]}, "zero_correct") == set()


def test_never_refines_nothing() -> None:
    assert groups_to_refine(VERDICTS, "never") == set()


def test_a_group_of_low_reward_is_below_the_bound_and_judged_responses_decide() -> None:
    assert groups_to_refine(VERDICTS, "low_reward", 0.5) == {"all_wrong", "unparsable", "partly_judged"}
    assert "one_right" in groups_to_refine(VERDICTS, "low_reward", 0.51)
    assert groups_to_refine(VERDICTS, "low_reward", 1e-9) == groups_to_refine(VERDICTS, "zero_correct")
