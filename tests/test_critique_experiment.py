"""The experiment of benchmarks/critique_helps.py: its sums, its lessons, and how runs are compared."""

import math
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import critique_helps
import critique_model
import critique_report


def test_a_solution_that_forgets_nothing_comes_to_the_sum_and_one_that_forgets_all_does_not() -> None:
    one = critique_model.Sum(a=4728, b=3985, digits=4)
    text, answer = critique_model.worked(one, random.Random(0), 0.0)
    assert text == "8+5+0=13\n2+8+1=11\n7+9+1=17\n4+3+1=08\n\\boxed{8713}"
    assert answer == 4728 + 3985
    assert critique_model.worked(one, random.Random(0), 1.0)[1] == 7603  # 13, 10, 16, 07 without what they carry
    assert one.carries == 3


def test_what_is_taught_again_states_the_answer_and_what_is_taught_alone_does_not() -> None:
    for seed in range(20):
        for again in (False, True):
            ((message,), answer) = critique_model.lesson(random.Random(seed), again)
            assert ("The correct answer is" in message["content"]) == again
            assert answer.startswith("\n".join(answer.splitlines()[:-1]))
            assert "\\boxed{" in answer.splitlines()[-1]


def test_every_digit_is_a_token_and_the_sentences_of_a_prompt_are_few() -> None:
    tokenizer = critique_model.build_tokenizer()
    messages, answer = critique_model.lesson(random.Random(3), True)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert len(ids) < 80
    assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n")
    pieces = [tokenizer.decode([token]) for token in tokenizer(answer)["input_ids"]]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [one for one in answer if one.isdigit()]


def test_hard_sums_carry_at_least_twice_and_no_problem_is_drawn_twice() -> None:
    rows = critique_helps.sums(random.Random(0), 50, "hard")
    assert len({row["problem"] for row in rows}) == 50
    for row in rows:
        a, b = (int(word) for word in row["problem"].removeprefix("What is ").removesuffix("?").split(" + "))
        assert critique_model.Sum(a=a, b=b, digits=4).carries >= 2
        assert row["answer"] == str(a + b)


@pytest.mark.parametrize(("place", "value"), [(-1, 0.2), (0, 0.2), (5, 0.3), (10, 0.4), (20, 0.8), (99, 0.8)])
def test_a_curve_is_read_on_the_line_between_two_evaluations(place: float, value: float) -> None:
    assert critique_report.between([0, 10, 20], [0.2, 0.4, 0.8], place) == pytest.approx(value)


def test_where_a_curve_gets_high_enough_is_between_two_evaluations_or_nowhere() -> None:
    assert critique_report.reached([0, 10, 20], [0.0, 0.4, 0.8], 0.5) == pytest.approx(12.5)
    assert critique_report.reached([0, 10, 20], [0.6, 0.4, 0.8], 0.5) == 0
    assert critique_report.reached([0, 10], [0.0, 0.4], 0.5) is None


def test_an_interval_is_students_and_a_single_seed_has_none() -> None:
    mean, low, high = critique_report.interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.303 / math.sqrt(3), rel=1e-3))
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(critique_report.interval([1.0])[1])


def test_what_was_sampled_beyond_the_budget_counts_for_nothing() -> None:
    run = {
        "tokens": [0, 100, 200, 300],
        "accuracy": {"hard": {0: 0.0, 2: 0.4, 3: 1.0}},
        "updates": [[1, 0.3, 50, 8], [2, 0.2, 60, 8], [3, None, 70, 8]],
        "tries": [[1, "a", 0.0, False], [2, "b", 0.25, True], [3, "a", 1.0, True]],
        "refined": [[1, 7, 6], [3, 7, 7]],
    }
    found = critique_report.at_budget(run, 250)
    assert found["iterations"] == 2
    assert found["hard_at_1"] == pytest.approx(0.7)
    assert found["hard_at_0.25"] == pytest.approx(0.125)
    assert (found["problems"], found["solved"], found["trained_tokens"]) == (2, 1, 110)
    assert (found["problems_at_half"], found["solved_at_half"]) == (1, 0)
    assert (found["refinements"], found["refinements_right"], found["entropy"]) == (7, 6, pytest.approx(0.25))
