"""Supervised fine-tuning: the cross-entropy of what is imitated, whatever its origin.

l_t = -log p_t

Of all supervised baselines (worked solutions, RAFT, refinements, critiques, CITL) only the rows differ: supervised.py.
"""

import torch
from torch import Tensor


def cross_entropies(logprobs: Tensor, valid: Tensor) -> Tensor:
    """Return l_t where valid, 0 elsewhere. logprobs, valid [B, T]. Advantages have no part in it."""
    return torch.where(valid, -logprobs, 0.0)
