"""The response mask: up to and including the first end."""

import torch

from cgrpo_core.masks import eos_mask


def test_the_end_itself_counts_and_nothing_after_it() -> None:
    mask = eos_mask(torch.tensor([[5, 6, 2, 7, 2], [2, 5, 5, 5, 5], [5, 5, 5, 5, 5], [5, 5, 5, 5, 2]]), 2)
    assert mask.dtype == torch.bool
    assert mask.long().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_any_of_several_ends_will_do() -> None:
    mask = eos_mask(torch.tensor([[5, 3, 2, 5], [5, 5, 2, 3]]), [2, 3])
    assert mask.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_without_an_end_token_everything_counts() -> None:
    assert eos_mask(torch.tensor([[5, 3]]), []).all()
