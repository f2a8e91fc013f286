"""How much processor time a container leaves this process; counting cores does not show such a quota."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpu_quota(cgroups: Path = CGROUPS, own: Path = OWN) -> float | None:
    """Cores' worth of time a second: the least that this process's control group and those above it allow.

    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``); None where nothing limits it.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas = [quota for line in lines for quota in _quotas(cgroups, line)]
    return min(quotas, default=None)


def _quotas(cgroups: Path, line: str) -> Iterator[float]:
    """The quotas along one line of /proc/self/cgroup, ``0::/path`` or ``4:cpu,cpuacct:/path``."""
    _, controllers, path = line.split(":", 2)
    names = controllers.split(",") if controllers else []
    if names and "cpu" not in names:
        return
    mount = cgroups / "cpu" if names else cgroups
    group = mount / path.lstrip("/")
    # Inside a container the path may be one of the host's; what limits the container is then mounted at the top.
    for folder in (group, *group.parents):
        if folder.is_relative_to(mount):
            quota = _version_1(folder) if names else _version_2(folder)
            if quota is not None:
                yield quota


def _version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _version_1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return None if quota < 0 else quota / period
