"""A run that is killed, again and again and at any moment, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fimaq.toolchain.data.demo_set import materialise

DRIVER = Path(__file__).with_name("killed_runs.py")


def killed(folder: Path, trials: int, kills: int, seed: int) -> list[dict[str, Any]]:
    data = materialise(folder / "data")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(data.calib), str(folder), str(trials), str(kills), str(seed)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("trials", "most", "seed"), [(6, 1, 3), pytest.param(30, 2, 11, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_one_that_was_left_alone(trials, most, seed, tmp_path):
    whole, *resumed = killed(tmp_path, trials, most, seed)
    assert len(resumed) == trials
    kills = [kill for one in resumed for kill in one["kills"]]
    assert len(kills) >= trials * 2 // 3  # a timer may be late
    for kind in ("wait=None", "event=None", "sync=None"):  # of each kind there are some that were not the others
        assert sum(kind not in kill for kill in kills) >= 1, kills
    for one in resumed:
        assert one["sha256"] == whole["sha256"], one["kills"]
        assert one["log"] == whole["log"], one["kills"]
        assert one["seconds"]["reconstruct"] == pytest.approx(one["block_seconds"], abs=0.02)
        assert one["left"] == ["run"], one["kills"]
