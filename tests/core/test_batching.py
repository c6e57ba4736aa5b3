"""Cuts into mini-batches, micro-batches and ranks: nothing is lost, nothing is doubled, budgets hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrpo_core.batching import assign_to_ranks, split_micro_batches, split_mini_batches

LENGTHS = st.lists(st.integers(1, 300), max_size=60)
fast = settings(max_examples=60, deadline=None)


@fast
@given(lengths=LENGTHS, budget=st.integers(1, 1000))
def test_every_row_is_in_exactly_one_micro_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = split_micro_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert padded <= budget or len(batch) == 1


@fast
@given(lengths=LENGTHS, budget=st.integers(1, 1000))
def test_micro_batches_are_sorted_by_length_and_none_could_take_the_next_row(lengths: list[int], budget: int) -> None:
    batches = split_micro_batches(lengths, budget)
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget
    assert split_micro_batches(lengths, budget) == batches


def test_hand_worked_micro_batches() -> None:
    assert split_micro_batches([3, 10, 3, 5, 25, 5], 20) == [[4], [1, 3], [5, 0, 2]]
    assert split_micro_batches([], 20) == []


@fast
@given(group_ids=st.lists(st.sampled_from("abcdefgh"), max_size=50), prompts=st.integers(1, 5))
def test_mini_batches_hold_whole_groups(group_ids: list[str], prompts: int) -> None:
    batches = split_mini_batches(group_ids, prompts)
    assert sorted(row for batch in batches for row in batch) == list(range(len(group_ids)))
    groups = [{group_ids[row] for row in batch} for batch in batches]
    assert sum(len(group) for group in groups) == len(set(group_ids))
    assert all(len(group) == prompts for group in groups[:-1])
    assert all(1 <= len(group) <= prompts for group in groups[-1:])


def test_mini_batches_follow_the_first_appearance_of_each_group() -> None:
    assert split_mini_batches(["b", "a", "b", "c", "a"], 2) == [[0, 2, 1, 4], [3]]


@fast
@given(count=st.integers(0, 40), world_size=st.integers(1, 8))
def test_every_rank_gets_the_same_number_of_micro_batches(count: int, world_size: int) -> None:
    micro_batches = [[row] for row in range(count)]
    ranks = assign_to_ranks(micro_batches, world_size)
    assert len(ranks) == world_size
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(row for rank in ranks for batch in rank for row in batch) == list(range(count))
    assert sum(not batch for rank in ranks for batch in rank) < world_size


def test_a_rank_without_work_left_gets_empty_micro_batches() -> None:
    assert assign_to_ranks([[0, 1], [2], [3]], 2) == [[[0, 1], [3]], [[2], []]]
    assert assign_to_ranks([], 3) == [[], [], []]


def test_sizes_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_micro_batch"):
        split_micro_batches([1], 0)
    with pytest.raises(ValueError, match="without tokens"):
        split_micro_batches([4, 0], 10)
    with pytest.raises(ValueError, match="mini_batch_prompts"):
        split_mini_batches(["a"], 0)
    with pytest.raises(ValueError, match="world_size"):
        assign_to_ranks([[0]], 0)
