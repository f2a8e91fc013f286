"""What a container leaves this process: processor time, which counting cores does not show, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

UNLIMITED = 2**62
"""Version 1 writes a number of about this size where nothing limits memory."""

Found = TypeVar("Found", int, float)
Read = Callable[[Path], Found | None]


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN) -> float | None:
    """Cores' worth of time a second: the least that this process's control group and those above it allow.

    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``); None where nothing limits it.
    """
    return min(_found(cgroups, own, "cpu", _cpu_1, _cpu_2), default=None)


def memory_left(cgroups: Path = CGROUPS, own: Path = OWN) -> int | None:
    """Bytes: the least that this process's control group and those above it have left; None where nothing limits it.

    Reads version 2 (``memory.max``) and version 1 (``memory.limit_in_bytes``). Cached pages of files that have not been
    used lately count as left, for the kernel takes them back first.
    """
    return min(_found(cgroups, own, "memory", _memory_1, _memory_2), default=None)


def _found(
    cgroups: Path, own: Path, controller: str, version_1: Read[Found], version_2: Read[Found]
) -> Iterator[Found]:
    """What a reader finds along the lines of /proc/self/cgroup, ``0::/path`` or ``4:cpu,cpuacct:/path``."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",") if controllers else []
        if names and controller not in names:
            continue
        mount = cgroups / controller if names else cgroups
        group: Path = mount / path.lstrip("/")
        # Inside a container the path may be one of the host's; what limits the container is then mounted at the top.
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount):
                try:
                    value = (version_1 if names else version_2)(folder)
                except (OSError, ValueError):
                    continue
                if value is not None:
                    yield value


def _cpu_2(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _cpu_1(folder: Path) -> float | None:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    period = int((folder / "cpu.cfs_period_us").read_text())
    return None if quota < 0 else quota / period


def _memory_2(folder: Path) -> int | None:
    limit = (folder / "memory.max").read_text().strip()
    return None if limit == "max" else _left(folder, int(limit), "memory.current", "inactive_file")


def _memory_1(folder: Path) -> int | None:
    limit = int((folder / "memory.limit_in_bytes").read_text())
    return None if limit >= UNLIMITED else _left(folder, limit, "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: int, usage: str, reclaimable: str) -> int:
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, limit - int((folder / usage).read_text()) + int(statistics[reclaimable]))
