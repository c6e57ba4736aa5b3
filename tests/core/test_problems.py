"""Rows that are problems, rows that are not, and the split that keeps evaluation apart."""

import math
from decimal import Decimal
from typing import Any

import pytest

from cgrpo_core.problems import (
    Rejection,
    distinct,
    normalised_question,
    part_of,
    problem_from_row,
    shared_questions,
    without_instruction,
)
from cgrpo_core.records import Problem

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def problem(row: Any) -> Problem:
    found = problem_from_row(row, 1, "file")
    assert isinstance(found, Problem), found
    return found


def reason(row: Any) -> str:
    found = problem_from_row(row, 7, "file")
    assert isinstance(found, Rejection)
    assert found.line == 7
    return found.reason


def test_both_spellings_of_the_columns_are_read() -> None:
    one = problem({"id": "a-1", "problem": " What? ", "answer": "4", "source": "S", "solution": "2+2", "level": 3})
    other = problem({"problem_id": "a-1", "question": "What?", "ground_truth": "4", "source": "S", "level": "3"})
    assert one == Problem(problem_id="a-1", question="What?", ground_truth="4", solution="2+2", source="S", level="3")
    assert (other.problem_id, other.question, other.ground_truth, other.level) == ("a-1", "What?", "4", "3")
    assert other.solution is None


def test_numbers_are_ground_truths_as_they_were_written() -> None:
    for value, text in [(7, "7"), (0, "0"), (-2.5, "-2.5"), (Decimal("1.50"), "1.50")]:
        assert problem({"question": "q", "answer": value}).ground_truth == text


def test_the_authors_schema_gives_the_question_without_its_instruction() -> None:
    row = {
        "data_source": "aime",
        "prompt": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": f"First line.\nHow many?\n{INSTRUCTION}"},
        ],
        "ability": "math",
        "reward_model": {"ground_truth": "025", "style": "rule"},
        "extra_info": {"index": 0, "split": "default"},
    }
    found = problem(row)
    assert (found.question, found.ground_truth, found.source) == ("First line.\nHow many?", "025", "aime")
    assert problem({**row, "extra_info": {"index": 9}}).problem_id == found.problem_id
    assert problem({"reward_model": {"ground_truth": "1", "question": "q"}}).question == "q"


def test_only_an_instruction_line_is_cut_off() -> None:
    assert without_instruction(f"q\n{INSTRUCTION}") == "q"
    for text in ("q\nHow many steps?", INSTRUCTION, "Please reason."):
        assert without_instruction(text) == text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "4"}, "no question"),
        ({"question": None, "answer": "4"}, "no question"),
        ({"question": "  ", "answer": "4"}, "the question is blank"),
        ({"question": 5, "answer": "4"}, "the question is a int, not text"),
        ({"question": "q"}, "no answer"),
        ({"question": "q", "answer": None}, "no answer"),
        ({"question": "q", "answer": math.nan}, "no answer"),
        ({"question": "q", "answer": math.inf}, "the answer is inf, not a number"),
        ({"question": "q", "answer": ""}, "the answer is blank"),
        ({"question": "q", "answer": True}, "the answer is true or false, not text or a number"),
        ({"question": "q", "answer": ["4"]}, "the answer is a list, not text or a number"),
        ({"question": "q\ud800", "answer": "4"}, "the question holds half a surrogate pair, which is no text"),
        ({"question": "q", "answer": "4", "solution": {}}, "the solution is an object, not text"),
        (["q", "4"], "the row is a list, not an object with columns"),
        (None, "the row is null, not an object with columns"),
        ({"reward_model": None}, "reward_model is null, not an object"),
        ({"reward_model": {"ground_truth": "1"}}, "no question"),
        ({"reward_model": {"ground_truth": "1"}, "prompt": [{"role": "system", "content": "s"}]}, "no user message"),
        ({"reward_model": {}, "prompt": [{"role": "user", "content": "q"}]}, "no answer"),
    ],
)
def test_a_row_that_is_no_problem_is_rejected_with_its_line_and_reason(row: Any, said: str) -> None:
    assert said in reason(row)


def test_a_problem_without_an_id_is_called_by_its_content() -> None:
    first, again, other = (problem({"question": q, "answer": "1"}) for q in ("a", " a ", "b"))
    assert first.problem_id == again.problem_id != other.problem_id


def test_the_second_row_of_an_id_is_rejected() -> None:
    rows = [
        (1, problem({"id": "x", "question": "a", "answer": 1})),
        (4, problem({"id": "x", "question": "b", "answer": 2})),
    ]
    problems, rejected = distinct([*rows, (5, Rejection(line=5, reason="no answer"))])
    assert [row.question for row in problems] == ["a"]
    assert rejected == [
        Rejection(line=4, reason="the problem x is already at line 1"),
        Rejection(line=5, reason="no answer"),
    ]


def test_the_split_goes_by_the_words_of_a_question_whatever_their_order() -> None:
    pairs = [(a, b) for a in range(10) for b in range(10)]
    for a, b in pairs:
        assert part_of(f"What is {a} + {b}?", 0.3) == part_of(f"What  is {a} + {b}?", 0.3)
    assert part_of("is 3 + 5", 0.3) == part_of("is 5 + 3", 0.3)
    share = sum(part_of(f"{a} plus {b}", 0.3) == "eval" for a in range(50) for b in range(50)) / 2500
    assert 0.2 < share < 0.4


def test_contamination_is_found_under_other_spacing_and_case() -> None:
    train = [problem({"id": "t1", "question": "What is  2 + 2?", "answer": 4}), problem({"question": "z", "answer": 1})]
    assert shared_questions(train, [problem({"id": "e", "question": "what is 2 + 2?", "answer": 4})]) == ["t1"]
    assert normalised_question("Ａ  b\n") == "a b"
