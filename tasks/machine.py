"""What memory this machine has to offer."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int | None:
    """Return the bytes of memory that are free for use now, within the limit of a container; None if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    try:
        limit = int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit: the file then says "max"
        return free
    return min(free, limit + _reclaimable(cgroup))


def _reclaimable(cgroup: Path) -> int:
    """Return what of a container's memory is cached files that give way."""
    try:
        entries = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return int(entries["inactive_file"]) + int(entries["active_file"])
    except (OSError, ValueError, KeyError):
        return 0


def gpu_memory() -> list[int]:
    """Return the total bytes of each GPU of this machine."""
    import torch

    return [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
