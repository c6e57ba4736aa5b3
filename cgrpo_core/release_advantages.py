"""Advantages as the official release computes them (zhangxy-2019/critique-GRPO, e8f03a2), kept to compare with.

Nothing here trains: advantages.py does. Differences: a group of one row keeps its raw score here, and
rewards and advantages are per token.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

WHITEN_FLOOR = 1e-8  # the release adds it to token counts, and to the variance under the root


def release_advantages(
    token_rewards: Tensor,
    mask: Tensor,
    group_ids: Sequence[Hashable],
    *,
    rule: str,
    divide_by_std: bool,
    epsilon: float,
) -> Tensor:
    """Return advantages [B, T] from token_rewards [B, T] (summed over all T, padding included) and mask [B, T].

    grpo: s - mean, over std + epsilon if asked; rloo: (s - mean) n/(n-1); rfpp_baseline: s - mean, whitened over the
    valid tokens of the batch. A group of one row has mean 0 and std 1. Raises ValueError for another rule.
    """
    scores = token_rewards.sum(dim=-1)
    members: dict[Hashable, list[int]] = {}
    for row, group_id in enumerate(group_ids):
        members.setdefault(group_id, []).append(row)
    advantages = torch.empty_like(scores)
    for rows in members.values():
        advantages[rows] = _group(scores[rows], rule, divide_by_std, epsilon)
    per_token = advantages[:, None] * mask.to(scores)
    return _whiten(per_token, mask.to(scores)) if rule == "rfpp_baseline" else per_token


def _group(scores: Tensor, rule: str, divide_by_std: bool, epsilon: float) -> Tensor:
    single = scores.numel() == 1
    centred = scores if single else scores - scores.mean()
    if rule == "grpo":
        std = torch.ones_like(scores[0]) if single else scores.std(correction=1)
        return centred / (std + epsilon) if divide_by_std else centred
    if rule == "rloo":
        return centred if single else centred * (scores.numel() / (scores.numel() - 1))
    if rule == "rfpp_baseline":
        return centred
    raise ValueError(f"unknown advantage rule {rule!r}; known: grpo, rloo, rfpp_baseline")


def _whiten(values: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum()
    mean = (values * mask).sum() / (count + WHITEN_FLOOR)
    variance = ((values - mean).square() * mask).sum() / (count + WHITEN_FLOOR) * count / (count - 1)
    return (values - mean) * torch.rsqrt(variance + WHITEN_FLOOR) * mask
