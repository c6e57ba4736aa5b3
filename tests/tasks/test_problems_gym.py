"""Procedural problems: the embedded default of the project."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cgrpo_core.problems import shared_questions
from tasks.gym import PRESETS, GymTaskExhausted, GymTaskInvalid
from tasks.problems import Loaded, SplitInvalid, identity, load

HERE = Path()


def gym(task: str = "one_digit_sums", **changes: Any) -> dict[str, Any]:
    return {"kind": "reasoning_gym", "task": task, "size": 20, "seed": 17, **changes}


def split(part: str, share: float = 0.3) -> dict[str, Any]:
    return {"part": part, "eval_share": share}


def loaded(task: str = "one_digit_sums", **changes: Any) -> Loaded:
    return load(gym(task, **changes), HERE)


@pytest.mark.parametrize(
    ("task", "operator", "digits"),
    [("one_digit_sums", "+", 1), ("two_digit_sums", "+", 2), ("one_digit_products", "*", 1)],
)
def test_arithmetic_presets_ask_what_their_names_say_and_know_the_answer(task: str, operator: str, digits: int) -> None:
    for problem in loaded(task).problems:
        words = problem.question.removeprefix("What is ").removesuffix("?").split()
        left, found, right = int(words[0]), words[1], int(words[2])
        assert found == operator
        assert len(words[0]) == len(words[2]) == digits
        assert int(problem.ground_truth) == (left + right if operator == "+" else left * right)
        assert problem.source == f"reasoning_gym/{task}"


def test_a_word_problem_is_of_one_step() -> None:
    for problem in loaded("one_step_word_problems").problems:
        count, *_ = [int(word) for word in problem.question.split() if word.isdigit()]
        assert int(problem.ground_truth) % count == 0


@pytest.mark.parametrize("task", sorted(PRESETS))
def test_train_and_eval_never_share_a_question_even_at_another_seed(task: str) -> None:
    train = loaded(task, split=split("train"))
    evaluation = loaded(task, seed=18, split=split("eval"))
    assert len(train.problems) == len(evaluation.problems) == 20
    assert not shared_questions(train.problems, evaluation.problems)
    assert train.counts["in_other_part"] > 0


def test_a_sum_and_the_same_sum_turned_round_are_in_the_same_part() -> None:
    def pairs(part: str, size: int) -> set[tuple[str, ...]]:
        found = loaded("one_digit_sums", size=size, split=split(part)).problems
        return {tuple(sorted(problem.question.split())) for problem in found}

    assert not pairs("train", 60) & pairs("eval", 30)


def test_questions_are_distinct_and_repeats_are_counted() -> None:
    found = loaded(size=90)
    assert len({problem.question for problem in found.problems}) == 90
    assert found.counts["repeated"] > 0


def test_the_same_declaration_gives_the_same_problems_and_a_larger_one_more_of_them() -> None:
    assert loaded() == loaded()
    assert loaded(size=30).problems[:20] == loaded().problems
    assert loaded(seed=18).problems != loaded().problems


def test_a_task_that_runs_out_of_questions_says_how_many_it_has() -> None:
    with pytest.raises(GymTaskExhausted, match="has 100 distinct questions, 101 were asked for") as raised:
        loaded(size=101)
    assert "100" in raised.value.hint
    with pytest.raises(GymTaskExhausted, match="in its eval part"):
        loaded(size=90, split=split("eval"))


def test_any_task_of_reasoning_gym_can_be_named_with_its_options() -> None:
    found = loaded("chain_sum", options={"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1})
    assert all(len(problem.question.partition(": ")[2].split()) == 6 for problem in found.problems)


def test_an_unknown_task_or_option_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(GymTaskInvalid, match="one_digit_sum") as raised:
        loaded("one_digit_sum")
    assert "did you mean one_digit_sums?" in raised.value.hint
    for options in ({"terms": 3}, {"min_terms": 5, "max_terms": 2}):
        with pytest.raises(GymTaskInvalid, match="refuses its options"):
            loaded("chain_sum", options=options)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"part": "eval"},
        {"part": "test", "eval_share": 0.3},
        split("eval", 0),
        split("eval", 1),
        split("eval", True),
    ],
)
def test_a_bad_split_is_an_error_when_planning(bad: dict[str, Any]) -> None:
    with pytest.raises(SplitInvalid):
        identity(gym(split=bad), HERE)


def test_identity_holds_all_that_matters_and_loads_nothing_heavy() -> None:
    digests = {
        identity(declaration, HERE)["digest"]
        for declaration in (gym(), gym(size=21), gym(seed=1), gym(split=split("eval")), gym("chain_sum"))
    }
    assert len(digests) == 5
    assert identity(gym(), HERE) == identity(gym(options={}, split=None), HERE)
    check = (
        "import sys; from pathlib import Path; from tasks.problems import identity; "
        f"identity({gym()!r}, Path()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'reasoning_gym', 'transformers', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
