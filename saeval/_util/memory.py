"""Determines how much memory is free."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory() -> int | None:
    """Return the free memory of this machine, or of this container if that is less, in bytes; None if unknown."""
    known = [found for found in (_of_machine(), *(_of_container(*files) for files in _CGROUPS)) if found is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _of_container(most: str, taken: str) -> int | None:
    try:
        return max(0, int(Path(most).read_text(encoding="ascii")) - int(Path(taken).read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return None
