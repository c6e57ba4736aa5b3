"""Reading the verdict of a critique: the last line, strictly; what is not clearly a verdict is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.critique_verdicts import VERDICT_REQUEST, attempt_status, is_kept, parse_verdict
from cgrpo_core.thinking import split_thinking, without_thinking


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Step 2 fails.\n\nVerdict: wrong", False),
        ("All steps hold.\nVerdict: correct", True),
        ("x\n**Verdict:** wrong.\n\n", False),
        ("x\n**Verdict: Correct**", True),
        ("x\nFinal verdict: \\boxed{incorrect}", False),
        ("x\nverdict - not correct", False),
        ("x\nVerdict: the final answer is right", True),
        ("x\n> `Verdict: wrong`\n---", False),
        ("<think>Verdict: correct</think>No.\nVerdict: wrong", False),
    ],
)
def test_a_verdict_is_read_from_the_last_line(text: str, verdict: bool) -> None:
    assert parse_verdict(text) is verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is wrong.",
        "Verdict: wrong\nBut one more thought on step 3.",  # not the last line
        "Verdict: correct\nVerdict: wrong",  # the request, repeated
        VERDICT_REQUEST,
        "Verdict: correct or wrong?",
        "Verdict: mostly correct",
        "Verdict:",
        "<think>never ended\nVerdict: wrong",
        "<think>Verdict: wrong</think>",
        "The attempt says: Verdict: correct, which I doubt",
    ],
)
def test_what_is_not_clearly_a_verdict_is_none(text: str) -> None:
    assert parse_verdict(text) is None


def test_the_status_of_a_reply_compares_its_verdict_with_the_verifiers() -> None:
    assert attempt_status("Fine.\nVerdict: correct", correct=True) == ("agreed", True)
    assert attempt_status("Fine.\nVerdict: correct", correct=False) == ("disagreed", True)
    assert attempt_status("I cannot tell.", correct=False) == ("no_verdict", None)
    assert attempt_status(" \n", correct=False) == ("empty", None)
    assert attempt_status("<think>all of it</think>  ", correct=False) == ("empty", None)


def test_any_keeps_what_says_something_and_agreeing_only_what_agrees() -> None:
    assert [is_kept(status, "agreeing") for status in ("agreed", "disagreed", "no_verdict", "empty")] == [
        *(True, False, False, False)
    ]
    assert [is_kept(status, "any") for status in ("agreed", "disagreed", "no_verdict", "empty", "unanswered")] == [
        *(True, True, True, False, False)
    ]


def test_thinking_is_told_apart_and_its_tags_are_never_quoted() -> None:
    assert split_thinking("<think>a</think>b") == ("a", "b")
    assert split_thinking("a</think>b") == ("a", "b")  # templates that open the thinking themselves
    assert split_thinking("<think>a</think>b<think>c</think>d") == ("ab c".replace(" ", ""), "d")
    assert split_thinking("<think>a") == ("a", "")
    assert split_thinking("plain") == ("", "plain")
    assert without_thinking("<think>cut off") == ""


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader_and_only_a_verdict_line_is_one(text: str) -> None:
    verdict = parse_verdict(text)
    assert verdict is None or "verdict" in text.lower()
    assert "<think>" not in "".join(split_thinking(text))


def test_a_megabyte_is_read_at_once() -> None:
    assert parse_verdict("Verdict: " * 120_000 + "\nVerdict: wrong") is False
    assert parse_verdict("Verdict: " + "not " * 300_000 + "correct") is None
