"""Gradients of one batch under several losses, compared: norms, cosines, and what each row pulls.

A gradient is a mapping of parameter name -> tensor, all of one shape and on one device. Dot products are summed up in
float64, a piece at a time, so that no second copy of a gradient is ever made.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from cgrpo_core.advantages import group_advantages, row_weights
from cgrpo_core.params import AdvantageParams
from cgrpo_core.records import TrainingSample

Gradient = Mapping[str, Tensor]
PIECE = 4_194_304  # numbers in float64 at once: 32 MiB


def dot(left: Gradient, right: Gradient) -> float:
    """Return the inner product of two gradients. Raises KeyError for a parameter that `right` lacks."""
    total = 0.0
    for name, tensor in left.items():
        for a, b in zip(tensor.reshape(-1).split(PIECE), right[name].reshape(-1).split(PIECE), strict=True):
            total += float(a.double() @ b.double())
    return total


def norm(gradient: Gradient) -> float:
    """Return the L2 norm over all parameters."""
    return math.sqrt(dot(gradient, gradient))


def cosine(left: Gradient, right: Gradient) -> float | None:
    """Return the cosine of the angle between two gradients; None where one is zero: it points nowhere."""
    lengths = norm(left) * norm(right)
    return max(-1.0, min(1.0, dot(left, right) / lengths)) if lengths else None


def pairwise_cosines(gradients: Sequence[Gradient]) -> list[list[float | None]]:
    """Return the symmetric matrix of cosines, row by row; its diagonal is 1, or None for a zero gradient."""
    size = len(gradients)
    found = {(i, j): cosine(gradients[i], gradients[j]) for i in range(size) for j in range(i, size)}
    return [[found[min(i, j), max(i, j)] for j in range(size)] for i in range(size)]


def with_advantages(samples: Sequence[TrainingSample], params: AdvantageParams) -> list[tuple[float, float]]:
    """Return (advantage, weight) of each stored row under another advantage rule; rewards and rows are as stored."""
    groups, origins = [row.group_id for row in samples], [row.origin for row in samples]
    advantages = group_advantages([row.reward for row in samples], groups, params, origins)
    return list(zip(advantages, row_weights(origins, groups, params), strict=True))
