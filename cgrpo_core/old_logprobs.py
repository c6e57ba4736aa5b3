"""Where the old log-probs of a ratio come from: those under the policy that sampled, pi_old of arXiv 2506.03106.

With one optimizer step they are those of the same forward pass, for nothing has changed since. With several, each later
step needs them from before the first one. The trainer can compute them, which is a forward pass over all rows; or the
sampler's stored ones are taken, which cost nothing and differ by what the two engines differ. That gap is measured on
the rows of the first step, whose log-probs are there anyway.
"""

from cgrpo_core.learning_params import LossParams
from cgrpo_core.records import OldLogprobs


def first_source(loss: LossParams, steps: int) -> OldLogprobs:
    """Return what is known before anything is computed; `sampler` is still to be settled where the gap decides."""
    if not steps or (loss.ratio == "none" and loss.mismatch.kind == "none"):
        return "none"
    if steps == 1:
        return "same_pass"
    return "trainer" if loss.old_logprobs == "trainer" else "sampler"


def settle_source(loss: LossParams, source: OldLogprobs, largest_gap: float | None) -> OldLogprobs:
    """Return the source once the gap is known: the largest |sampler - trainer| of a response token, None if of none."""
    if source == "sampler" and loss.old_logprobs == "auto":
        return source if largest_gap is not None and largest_gap <= loss.old_logprobs_gap else "trainer_for_gap"
    return source
