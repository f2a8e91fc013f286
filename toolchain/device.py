"""``--device``: where torch computes."""

from __future__ import annotations

import torch

from .distributed.launch import SINGLE, Launch
from .errors import EnvironmentProblem, UsageError


def pick_device(name: str, launch: Launch = SINGLE) -> torch.device:
    """``auto`` takes a CUDA device if there is one: the first, or each of a launcher's processes its own.

    Raises EnvironmentProblem for a device that is not there, UsageError for one device for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and launch.size > 1:
        if name != device.type:  # cuda:0
            raise UsageError(f"--device {name} is one device for {launch.size} processes; wanted one each. Give cuda.")
        device = torch.device("cuda", launch.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"device {device} was asked for and torch sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device cpu, or install a torch build and driver that match the GPU."
        )
    return device
