"""The most memory that was in use since a moment, per device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import final

import torch

PROCESS = Path("/proc/self")

RESET_PEAK = "5"
"""What Linux wants in ``clear_refs`` to forget the highest resident size so far (man 5 proc)."""


@final
class PeakMemory:
    """Measures from when it is made: what torch took on a CUDA device, or on a CPU the resident size of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = _reset(device)

    def bytes(self) -> int | None:
        """The peak so far, or None where the system does not tell."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None


def _reset(device: torch.device) -> bool:
    """Forget earlier peaks; whether that could be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
    except OSError:  # another system, or a container that does not allow it
        return False
    return True
