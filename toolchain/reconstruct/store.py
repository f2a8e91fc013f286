"""Where tensors with a row for every image live: on the device, in memory, or in files that are mapped into memory."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal, Protocol, final

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import CACHE_SUFFIX
from ..errors import EnvironmentProblem

Place = Literal["device", "ram", "disk"]
"""What ``--cache`` chooses between."""

FLOAT = 4
"""Bytes of a float32 value."""


class Store(Protocol):
    """Makes tensors; each is given back when its last reference goes."""

    def empty(self, *shape: int) -> Tensor:
        """A float32 tensor of ``shape`` with undefined content."""


@final
class DeviceStore:
    """On a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def empty(self, *shape: int) -> Tensor:
        """A tensor on the device."""
        return torch.empty(shape, device=self._device)


@final
class RamStore:
    """In memory, each tensor in a mapping of its own: the system gets it back at once, and the heap is not torn."""

    def empty(self, *shape: int) -> Tensor:
        """A tensor in memory."""
        return _tensor(mmap.mmap(-1, FLOAT * math.prod(shape), access=mmap.ACCESS_COPY), shape)


@final
class DiskStore:
    """In files of ``folder``: the system holds in memory what it has room for.

    The files have no name (where the file system cannot do that, one for an instant), so nothing of them outlives the
    process, however it ends. Their space is taken when they are made: a full disk is an error then, not a crash later.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def empty(self, *shape: int) -> Tensor:
        """A tensor in a file. Raises EnvironmentProblem where there is no space for it."""
        size = FLOAT * math.prod(shape)
        try:
            with tempfile.TemporaryFile(dir=self._folder, suffix=CACHE_SUFFIX) as file:
                if sys.platform == "linux":
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                return _tensor(mmap.mmap(file.fileno(), size), shape)
        except OSError as error:
            raise EnvironmentProblem(
                f"a cache of {size / 1e9:.2f} GB cannot be made in {self._folder} ({error}). Free some space, lower "
                "--recon-samples, or give --cache ram; then --resume."
            ) from error


def make_store(place: Place, device: torch.device, folder: Path) -> Store:
    """The store of a place; on a CPU the device's memory is RAM."""
    if place == "disk":
        return DiskStore(folder)
    return DeviceStore(device) if place == "device" and device.type != "cpu" else RamStore()


def _tensor(mapped: mmap.mmap, shape: tuple[int, ...]) -> Tensor:
    """``mapped`` as a tensor, which keeps it."""
    return torch.from_numpy(np.frombuffer(mapped, np.float32).reshape(shape))
