"""The digest of weights: of their names, types, shapes and bytes, in whatever order and by however many threads."""

import pytest
import torch

from cgrpo_core.weights import weights_digest

TENSORS = [(f"w{place}", torch.arange(60.0).reshape(3, 20) + place) for place in range(23)]


@pytest.mark.parametrize("threads", [2, 4, 64])
def test_threads_and_order_do_not_matter(threads: int) -> None:
    assert weights_digest(reversed(TENSORS), threads=threads) == weights_digest(TENSORS)


@pytest.mark.parametrize("threads", [1, 4])
def test_one_changed_value_name_shape_or_type_is_another_digest(threads: int) -> None:
    name, tensor = TENSORS[7]
    changed = tensor.clone()
    changed[2, 19] += 1e-5
    others = [(name, changed), ("other", tensor), (name, tensor.reshape(20, 3)), (name, tensor.to(torch.float64))]
    digests = {weights_digest([*TENSORS[:7], other, *TENSORS[8:]], threads=threads) for other in others}
    assert len(digests | {weights_digest(TENSORS)}) == 5
