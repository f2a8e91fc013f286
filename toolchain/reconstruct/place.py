"""Where the caches go: what was asked for if it fits, or the fastest place that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from ..errors import EnvironmentProblem
from ..room import free_disk, free_memory, held_memory
from .estimate import MemoryEstimate
from .store import Place

CacheChoice = Literal["auto", "device", "ram", "disk"]
"""What ``--cache`` takes."""

MARGIN = 1.2
"""Of an estimate, that what is free must hold: allocators and libraries take memory no estimate sees."""

LIBRARIES = 160 * 10**6
"""Bytes that kernels' buffers and gaps in the heap took on a CPU beside what was estimated, as measured."""

WHERE: dict[Place, str] = {"device": "on the device", "ram": "in memory", "disk": "on disk"}

ADVICE = {
    "device": "Give --cache ram or --cache disk, or free memory of the device.",
    "memory": "Give --cache disk, a lower --recon-samples, --fisher-samples or --batch-size, or free some memory.",
    "disk": "Free some space beside -o, or give a lower --recon-samples.",
}


@final
@dataclass(frozen=True)
class CachePlan:
    """Where the caches go, and what the run needs of each resource (``device``, ``memory``, ``disk``), in bytes."""

    place: Place
    needs: Mapping[str, int]
    estimate: MemoryEstimate
    held: int | None
    """Bytes of memory the process holds already, the model among them; None where the system does not tell."""
    passed_over: tuple[str, ...] = ()
    """What ``auto`` would have preferred and why it does not fit."""

    def lines(self) -> list[str]:
        """The plan in words."""
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in asdict(self.estimate).items() if size)
        needs = " and ".join(f"{_gigabytes(size)} of {name}" for name, size in self.needs.items() if size)
        held = f" beside the {_gigabytes(self.held)} of memory held now" if self.held else ""
        return [*self.passed_over, f"caches {WHERE[self.place]}: needs about {needs}{held} ({parts})"]

    def row(self) -> dict[str, Any]:
        """The plan as a line of the log."""
        row = {"event": "memory", "cache": self.place, "needs": dict(self.needs), "held": self.held}
        return row | {"parts": asdict(self.estimate)}


def plan_caches(
    asked: CacheChoice, estimate: MemoryEstimate, device: torch.device, folder: Path, local_size: int = 1
) -> CachePlan:
    """Decide where the caches of a run go whose disk files would lie in ``folder``.

    Each of ``local_size`` processes on the machine takes as much, so one may take that part of memory and disk.

    Raises EnvironmentProblem where what was asked for does not fit or, with ``auto``, nothing does.
    """
    free = _free(device, folder, local_size)
    candidates: tuple[Place, ...] = ("device", "ram", "disk") if device.type == "cuda" else ("ram", "disk")
    if asked != "auto":
        candidates = ("ram" if asked == "device" and device.type == "cpu" else asked,)
    passed_over: list[str] = []
    for place in candidates:
        needs = _needs(place, estimate, device)
        lacking = [name for name, size in needs.items() if _lacks(size, free[name])]
        if not lacking:
            return CachePlan(place, needs, estimate, held_memory(), tuple(passed_over))
        passed_over += [
            f"--cache {place} does not fit: wanted {_gigabytes(int(needs[name] * MARGIN))} of {name} "
            f"(estimated {_gigabytes(needs[name])} and a fifth more), free are {_gigabytes(free[name])}"
            for name in lacking
        ]
    raise EnvironmentProblem(f"{'; '.join(passed_over)}. {ADVICE[lacking[0]]}")


def _lacks(size: int, free: int | None) -> bool:
    return free is not None and size * MARGIN > free


def _needs(place: Place, estimate: MemoryEstimate, device: torch.device) -> dict[str, int]:
    """Bytes the run will take beyond what the process holds, whose model is in memory."""
    if device.type == "cpu":
        stored = {"memory": estimate.stored, "disk": 0} if place == "ram" else {"memory": 0, "disk": estimate.stored}
        return stored | {"memory": stored["memory"] + estimate.fixed - estimate.model + LIBRARIES}
    # Sums over the images of a probe are made on the device, so its data is there wherever the caches are; and a step
    # that was recorded as a CUDA graph keeps its memory meanwhile.
    needs = {"device": estimate.fixed + estimate.step + estimate.probes, "memory": 0, "disk": 0}
    needs[{"device": "device", "ram": "memory", "disk": "disk"}[place]] += estimate.caches
    return needs


def _free(device: torch.device, folder: Path, local_size: int) -> dict[str, int | None]:
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    memory = free_memory()
    share = None if memory is None else memory // local_size
    return {"device": on_device, "memory": share, "disk": free_disk(folder) // local_size}


def _gigabytes(size: int | None) -> str:
    return f"{(size or 0) / 1e9:.2f} GB"
