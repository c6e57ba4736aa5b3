"""Rows as benchmarks publish them: problems in our words, or rejected with a reason."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrpo_core.benchmarks import Format, RowForm, benchmark_problem, chosen
from cgrpo_core.problems import Rejection
from cgrpo_core.prompts import TEMPLATE_VERSIONS, question_messages
from cgrpo_core.records import Problem

GOLDEN = Path(__file__).parent.parent / "data" / "prompts"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
APART = RowForm(
    name="gpqa",
    format="answers_apart",
    columns={"question": "Question", "answer": "Correct Answer"},
    wrong_columns=WRONG,
)
APART_ROW = {"Question": "Which?", "Correct Answer": "right", **{name: f"wrong {name[-1]}" for name in WRONG}}


def read(row: Any, format_: Format = "problem", **columns: str) -> Problem | Rejection:
    return benchmark_problem(row, 5, RowForm(name="b", format=format_, columns=columns))


def problem(row: Any, format_: Format = "problem", **columns: str) -> Problem:
    found = read(row, format_, **columns)
    assert isinstance(found, Problem), found
    return found


def test_columns_are_renamed_and_the_id_begins_with_the_benchmark() -> None:
    found = problem({"Question": "1+1?", "Answer": 2, "id": 7}, question="Question", answer="Answer")
    assert (found.question, found.ground_truth, found.problem_id) == ("1+1?", "2", "b/7")


def test_a_boxed_solution_and_a_list_of_answers_are_the_answer() -> None:
    assert problem({"problem": "?", "solution": "\\boxed{204}"}, answer="solution").ground_truth == "204"
    assert problem({"question": "?", "final_answer": ["$2n-2$"]}, answer="final_answer").ground_truth == "$2n-2$"
    assert problem({"question": "?", "final_answer": ["1", " 2"]}, answer="final_answer").ground_truth == "1, 2"


def test_gsm8k_has_its_number_after_the_mark() -> None:
    found = problem({"question": "How many?", "answer": "3 * 4 = 12,000\n#### 12,000"}, "gsm8k")
    assert found.ground_truth == "12000"
    assert found.solution == "3 * 4 = 12,000"
    assert problem({"problem": "How many?", "answer": "18", "solution": "so"}, "gsm8k").ground_truth == "18"


def test_options_are_lettered_and_the_ground_truth_is_a_letter() -> None:
    options = [f"option {k}" for k in range(10)]
    found = problem({"question": "Which?", "options": options, "answer": "J"}, "options")
    assert found.question.splitlines() == ["Which?", "", *(f"{'ABCDEFGHIJ'[k]}. option {k}" for k in range(10))]
    assert found.ground_truth == "J"
    assert problem({"question": "Which?", "options": options, "answer": 2}, "options").ground_truth == "C"


def test_answers_apart_are_shuffled_by_their_content_alone() -> None:
    found = benchmark_problem(APART_ROW, 1, APART)
    other = dict(APART_ROW, **{WRONG[0]: APART_ROW[WRONG[2]], WRONG[2]: APART_ROW[WRONG[0]]})
    assert isinstance(found, Problem)
    assert found == benchmark_problem(other, 9, APART)
    lines = found.question.splitlines()
    assert f"{found.ground_truth}. right" in lines
    assert sorted(line[3:] for line in lines[2:]) == ["right", "wrong 1", "wrong 2", "wrong 3"]


def test_the_right_answer_is_at_every_place_about_as_often() -> None:
    rows = [benchmark_problem({**APART_ROW, "Question": f"Which {k}?"}, k, APART) for k in range(400)]
    letters = [row.ground_truth for row in rows if isinstance(row, Problem)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")


def test_theoremqa_without_its_picture_is_not_asked() -> None:
    names = {"question": "Question", "answer": "Answer"}
    assert problem({"Question": "?", "Answer": "True", "Picture": None}, "theoremqa", **names).ground_truth == "True"
    found = read({"Question": "?", "Answer": "3", "Picture": {"bytes": b"x"}}, "theoremqa", **names)
    assert isinstance(found, Rejection)
    assert "picture" in found.reason


def test_a_row_of_the_authors_release_is_read_in_every_benchmark() -> None:
    row = {
        "data_source": "amc",
        "prompt": [
            {"role": "user", "content": "m+n?\nPlease reason step by step, and put your final answer within \\boxed{}."}
        ],
        "reward_model": {"ground_truth": "142.0", "style": "rule"},
    }
    for format_ in get_args(Format):
        found = problem(row, format_)
        assert (found.question, found.ground_truth) == ("m+n?", "142.0")


@pytest.mark.parametrize(
    ("row", "format_", "reason"),
    [
        ("text", "options", "not an object"),
        ({"question": "?"}, "problem", "no answer"),
        ({"question": " ", "answer": "1"}, "problem", "blank"),
        ({"question": "?", "answer": []}, "problem", "a list"),
        ({"question": "?", "options": "AB", "answer": "A"}, "options", "not a list"),
        ({"question": "?", "options": ["x"], "answer": "A"}, "options", "not a list"),
        ({"question": "?", "options": ["x"] * 11, "answer": "A"}, "options", "not a list"),
        ({"question": "?", "options": ["x", ""], "answer": "A"}, "options", "blank"),
        ({"question": "?", "options": ["x", "y"], "answer": "C"}, "options", "names none"),
        ({"question": "?", "options": ["x", "y"], "answer": True}, "options", "names none"),
        ({"question": "?", "options": ["x", "y"], "answer": "AB"}, "options", "names none"),
        ({"question": "?", "options": ["x", "y"], "answer": ""}, "options", "names none"),
        ({"question": None, "options": ["x", "y"], "answer": "A"}, "options", "no question"),
    ],
)
def test_a_row_that_is_no_problem_is_rejected_with_line_and_reason(row: Any, format_: Format, reason: str) -> None:
    found = read(row, format_)
    assert isinstance(found, Rejection)
    assert found.line == 5
    assert reason in found.reason


def test_a_right_answer_among_the_wrong_ones_is_rejected() -> None:
    found = benchmark_problem({**APART_ROW, WRONG[1]: " right"}, 1, APART)
    assert isinstance(found, Rejection)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["question", "answer", "options", "id", "solution", "level"]), values),
    st.sampled_from(get_args(Format)),
)
def test_no_row_raises(row: dict[str, Any], format_: Format) -> None:
    assert isinstance(read(row, format_), Problem | Rejection)


def test_a_limit_keeps_the_order_and_does_not_prefer_the_first() -> None:
    rows = [problem({"question": f"{k}?", "answer": k, "id": k}) for k in range(100)]
    kept = chosen(rows, 10)
    assert len(kept) == 10
    assert kept == [row for row in rows if row in kept]
    assert kept != rows[:10]
    assert set(chosen(rows, 9)) < set(kept)
    assert chosen(rows, None) == chosen(rows, 200) == rows


@pytest.mark.parametrize("template", ["choice", "letter"])
def test_the_prompt_of_multiple_choice_is_the_golden_one(template: Any) -> None:
    found = problem({"question": "What is 2 + 2?", "options": ["3", "4", "5"], "answer": "B"}, "options")
    golden = GOLDEN / f"question_{template}_v{TEMPLATE_VERSIONS[template]}.txt"
    (message,) = question_messages(found.question, template)
    assert f"<{message['role']}>\n{message['content']}\n" == golden.read_text(encoding="utf-8")
