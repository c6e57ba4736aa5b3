"""What is in a benchmark too: whole questions and 13 words in a row."""

from cgrpo_core.decontamination import NGRAM, overlaps, words_of
from cgrpo_core.records import Problem

LONG = "a train leaves the station at noon and travels north at sixty miles an hour until dusk"


def problem(problem_id: str, question: str) -> Problem:
    return Problem(problem_id=problem_id, question=question, ground_truth="1", solution=None, source="s", level=None)


def test_the_same_question_is_found_whatever_its_spacing_case_and_signs() -> None:
    (found,) = overlaps([problem("a", "What is  3 + 5 ?")], [problem("b", "what is $3+5$?")])
    assert (found.problem_id, found.benchmark_id, found.kind) == ("a", "b", "exact")


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not() -> None:
    words = words_of(LONG)
    train = [problem("a", f"One day {LONG}. How far?")]
    assert overlaps(train, [problem("b", "It is said that " + " ".join(words[:NGRAM]) + " twice")])[0].kind == "ngram"
    assert not overlaps(train, [problem("b", "It is said that " + " ".join(words[: NGRAM - 1]) + " twice")])


def test_each_problem_is_named_once_and_short_or_other_questions_are_not() -> None:
    train = [problem("a", LONG), problem("c", "What is 3 + 5?"), problem("d", "???")]
    bench = [problem("b", LONG), problem("e", f"Again {LONG}"), problem("f", "What is 3 + 6?"), problem("g", "!!")]
    assert [(found.problem_id, found.benchmark_id, found.kind) for found in overlaps(train, bench)] == [
        ("a", "b", "exact")
    ]


def test_the_code_of_a_drawing_is_not_words() -> None:
    drawing = "[asy] label A a s label B b s label C c n label D d [/asy]"
    assert not overlaps([problem("a", f"Find x. {drawing}")], [problem("b", f"Find y. {drawing}")])
