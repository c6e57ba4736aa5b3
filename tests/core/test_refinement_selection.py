"""Which refinements join a group, and which responses leave for them."""

import itertools
from collections import Counter

import pytest

from cgrpo_core.params import SelectParams
from cgrpo_core.selection import place, select_refinements

PAPER = SelectParams()
RELEASE = SelectParams(prefer="first_best")


def test_a_correct_refinement_goes_before_wrong_ones() -> None:
    group = [("f1", 0.0), ("f2", 1.0), ("f3", 0.0)]
    assert all(select_refinements(group, PAPER, seed) == [("f2", "correct")] for seed in range(20))


def test_without_a_correct_one_the_draw_is_random_over_seeds_and_fixed_for_a_seed() -> None:
    group = [(f"f{index}", 0.0) for index in range(4)]
    drawn = Counter(select_refinements(group, PAPER, seed)[0] for seed in range(200))
    assert set(drawn) == {(f"f{index}", "random") for index in range(4)}
    assert min(drawn.values()) > 25
    assert select_refinements(group, PAPER, 7) == select_refinements(group, PAPER, 7)


def test_among_several_correct_ones_the_draw_depends_on_the_seed_not_on_their_order() -> None:
    group = [("f1", 1.0), ("f2", 1.0), ("f3", 0.0), ("f4", 1.0)]
    chosen = {select_refinements(list(order), PAPER, seed=5)[0] for order in itertools.permutations(group)}
    assert len(chosen) == 1
    assert {select_refinements(group, PAPER, seed)[0][0] for seed in range(50)} == {"f1", "f2", "f4"}


def test_keeping_more_takes_correct_ones_first_and_fills_up_at_random() -> None:
    group = [("f1", 0.0), ("f2", 1.0), ("f3", 0.0)]
    chosen = select_refinements(group, SelectParams(keep=2), seed=1)
    assert chosen[0] == ("f2", "correct")
    assert chosen[1][0] in ("f1", "f3")
    assert chosen[1][1] == "random"
    assert len(select_refinements(group, SelectParams(keep=9), seed=1)) == 3


@pytest.mark.parametrize("params", [PAPER, RELEASE])
def test_a_refinement_that_was_not_judged_is_never_selected(params: SelectParams) -> None:
    assert select_refinements([("f1", None), ("f2", 0.0)], params, seed=0)[0][0] == "f2"
    assert select_refinements([("f1", None), ("f2", None)], params, seed=0) == []
    assert select_refinements([], params, seed=0) == []


def test_the_release_takes_the_first_right_one_else_the_first_of_the_highest() -> None:
    assert select_refinements([("a", 0.5), ("b", 1.0), ("c", 1.0)], RELEASE, seed=0) == [("b", "first_best")]
    assert select_refinements([("a", -1.0), ("b", 0.5), ("c", 0.5)], RELEASE, seed=0) == [("b", "first_best")]
    assert select_refinements([("a", 0.0), ("b", 0.0)], RELEASE, seed=0) == [("a", "first_best")]


GROUP = [("r1", 1.0), ("r2", 0.0), ("r3", 0.0), ("r4", 1.0)]


def test_added_refinements_leave_every_response_in_place() -> None:
    assert place(GROUP, 2, "add") == ["r1", "r2", "r3", "r4"]


def test_replaced_wrong_responses_are_the_first_wrong_ones_and_a_right_one_never_leaves() -> None:
    assert place(GROUP, 0, "replace_wrong") == ["r1", "r2", "r3", "r4"]
    assert place(GROUP, 1, "replace_wrong") == ["r1", "r3", "r4"]
    assert place(GROUP, 2, "replace_wrong") == ["r1", "r4"]
    assert place(GROUP, 3, "replace_wrong") == ["r1", "r4"]


def test_the_release_replaces_the_first_responses_even_the_only_right_one() -> None:
    assert place([("r1", 1.0), ("r2", 0.0)], 1, "replace_first") == ["r2"]
    assert place(GROUP, 0, "replace_first") == ["r1", "r2", "r3", "r4"]


def test_a_response_that_was_not_judged_leaves_and_makes_room_first() -> None:
    group = [("r1", 0.0), ("r2", None), ("r3", 0.0)]
    assert place(group, 1, "add") == ["r1", "r3"]
    assert place(group, 1, "replace_wrong") == ["r1", "r3"]
    assert place(group, 2, "replace_wrong") == ["r3"]
    assert place(group, 1, "replace_first") == ["r1", "r3"]
    assert place(group, 2, "replace_first") == ["r3"]
