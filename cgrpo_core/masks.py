"""Which tokens of a padded batch of responses count."""

from collections.abc import Sequence

import torch
from torch import Tensor


def eos_mask(token_ids: Tensor, eos_token_ids: int | Sequence[int]) -> Tensor:
    """Return bool [B, T]: true up to and including the first end-of-sequence token of each row of token_ids [B, T].

    Any of several ids ends a row. The end itself is trained on: stopping is something that the policy decides. A row
    without an end is true throughout.
    """
    ends = torch.as_tensor(
        [eos_token_ids] if isinstance(eos_token_ids, int) else list(eos_token_ids),
        dtype=token_ids.dtype,
        device=token_ids.device,
    )
    is_end = torch.isin(token_ids, ends)
    return (is_end.cumsum(dim=-1) - is_end.long()) == 0
