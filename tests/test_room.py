"""What is free, from files as the kernel writes them."""

from __future__ import annotations

import resource
import shutil

import pytest

from fimaq.toolchain import room
from fimaq.toolchain.cgroup import memory_left

GB = 10**9


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def two(limit, used, inactive):
    statistics = f"anon 5\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": statistics}


def one(limit, used, inactive):
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}\n",
    }


def under(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/\n", two("max", 7, 2), None),
        ("0::/\n", two(100, 70, 25), 55),  # what files hold is given back
        ("0::/\n", two(100, 170, 0), 0),
        ("0::/pod/box\n", under("pod/box", two("max", 7, 2)) | under("pod", two(1000, 70, 0)), 930),
        ("0::/pod/box\n", under("pod/box", two(500, 70, 0)) | under("pod", two(1000, 70, 0)), 430),
        ("0::/host/path\n", two(300, 100, 0), 200),
        ("4:memory:/a\n", under("memory/a", one(800, 100, 10)), 710),
        ("4:memory:/a\n", under("memory/a", one(9223372036854771712, 100, 10)), None),
        ("4:cpu:/a\n", under("memory/a", one(800, 100, 10)), None),
        ("0::/\n", {"memory.max": "100\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_least_that_the_groups_above_leave_counts(tmp_path, own, files, left):
    write(tmp_path, {"own": own} | under("cgroup", files))
    assert memory_left(tmp_path / "cgroup", tmp_path / "own") == left


@pytest.fixture
def proc(tmp_path):
    write(
        tmp_path / "proc",
        {
            "meminfo": "MemTotal:       9000000 kB\nMemFree:        1 kB\nMemAvailable:   4000000 kB\n",
            "self/status": "VmSize:\t 2000000 kB\nVmData:\t  500000 kB\nVmRSS:\t 300000 kB\nRssAnon:\t  250000 kB\n",
        },
    )
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("group", "limits", "free"),
    [
        (None, {}, 4096 * 10**6),
        (3 * GB, {}, 3 * GB),
        (5 * GB, {}, 4096 * 10**6),
        (None, {"RLIMIT_AS": 3 * GB}, 3 * GB - 2048 * 10**6),
        (None, {"RLIMIT_DATA": 3 * GB}, 3 * GB - 512 * 10**6),
        (None, {"RLIMIT_AS": GB}, 0),
        (2 * GB, {"RLIMIT_DATA": 3 * GB}, 2 * GB),
    ],
)
def test_free_memory_is_the_least_of_all_limits(proc, group, limits, free, monkeypatch):
    monkeypatch.setattr(room, "memory_left", lambda: group)
    numbers = {getattr(resource, name): value for name, value in limits.items()}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (numbers.get(which, resource.RLIM_INFINITY),) * 2)
    assert room.free_memory(proc) == free


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "memory_left", lambda: None)
    assert room.free_memory(tmp_path) is None
    assert room.held_memory(tmp_path) is None


def test_held_memory_leaves_mapped_files_out(proc):
    assert room.held_memory(proc) == 256 * 10**6


def test_the_disk_of_a_folder_that_is_not_there_yet_is_its_parents(tmp_path):
    assert room.free_disk(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)
