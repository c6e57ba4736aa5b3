"""Per-token estimators of KL(policy || reference policy), from the log-probs of sampled tokens."""

from collections.abc import Callable

import torch
from torch import Tensor

LOW_VAR_LIMIT = 10.0  # of low_var_kl: exp(log ratio) has no bound, and one token must not outweigh a batch


def _low_var_kl(log_ratio: Tensor) -> Tensor:
    return (torch.expm1(-log_ratio) + log_ratio).clamp(-LOW_VAR_LIMIT, LOW_VAR_LIMIT)


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda log_ratio: log_ratio,
    "abs": torch.abs,
    "mse": lambda log_ratio: 0.5 * log_ratio.square(),
    "low_var_kl": _low_var_kl,
}


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Return the KL estimate of each token, any shape; x = logprobs - ref_logprobs.

    kl: x. abs: |x|. mse: x^2 / 2. low_var_kl: exp(-x) - 1 + x within [-10, 10], never negative and of low variance
    ("k3" of Schulman's note on approximating KL; GRPO, arXiv 2402.03300, eq. 4). Raises ValueError for another name.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[estimator](logprobs - ref_logprobs)
