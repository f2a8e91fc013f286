"""How much memory and disk this process may still take."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .cgroup import memory_left

PROC = Path("/proc")

LIMITS = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}
"""Limits of ``ulimit`` that end in a failed allocation, and what of /proc/self/status counts against each."""


def free_memory(proc: Path = PROC) -> int | None:
    """Bytes: the least of what the system has available, what the control group leaves and what ``ulimit`` leaves.

    None where the system tells none of them.
    """
    available = _kilobytes(proc / "meminfo", "MemAvailable")
    return min((left for left in (available, memory_left(), *_limits(proc)) if left is not None), default=None)


def held_memory(proc: Path = PROC) -> int | None:
    """Bytes of memory this process holds now, files that are mapped left out; None where the system does not tell."""
    return _kilobytes(proc / "self" / "status", "RssAnon")


def free_disk(folder: Path) -> int:
    """Bytes that may be written in ``folder`` or, before it is made, beside it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _limits(proc: Path) -> list[int]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    left = []
    for name, counted in LIMITS.items():
        limit, used = resource.getrlimit(getattr(resource, name))[0], _kilobytes(proc / "self" / "status", counted)
        if limit != resource.RLIM_INFINITY and used is not None:
            left.append(max(0, limit - used))
    return left


def _kilobytes(path: Path, key: str) -> int | None:
    """A line ``key:  123 kB`` of a file of /proc, in bytes."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None
