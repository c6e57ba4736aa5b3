"""What an engine's process has used of memory at most: what its stage stores, to be compared with the estimate."""

import resource
import sys
from collections.abc import Sequence


def peak_memory() -> dict[str, int]:
    """Return `peak_rss_bytes` of this process and, if it has used a GPU, `peak_device_bytes`; both since it started."""
    peaks = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_device_bytes"] = torch.cuda.max_memory_reserved()
    return peaks


def largest(peaks: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the largest of each figure over the processes of an engine."""
    return {name: max(one.get(name, 0) for one in peaks) for name in sorted({name for one in peaks for name in one})}
