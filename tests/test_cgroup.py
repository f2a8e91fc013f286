"""A container's quota of processor time, from files as the kernel writes them."""

import pytest

from fimaq.toolchain import runtime
from fimaq.toolchain.cgroup import cpu_quota


def quota(tmp_path, own, files):
    """The quota in a made-up control group tree."""
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return cpu_quota(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/pod/box\n", {"pod/box/cpu.max": "50000 100000\n", "pod/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/host/path\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../..\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("3:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_least_quota_of_the_groups_above_counts(tmp_path, own, files, cores):
    assert quota(tmp_path, own, files) == cores


def test_a_system_without_control_groups_has_none(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(("found", "cores"), [(None, 8), (16.0, 8), (3.0, 3), (1.5, 1), (0.25, 1)])
def test_threads_are_whole_cores_and_at_least_one(monkeypatch, found, cores):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: set(range(1000, 1008)), raising=False)
    monkeypatch.setattr(runtime, "cpu_quota", lambda: found)
    assert runtime.usable_cores() == cores
