"""Where a block's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, final

import torch

Part = Literal["advance", "probes", "steps", "bookkeeping"]


@final
class Stopwatch:
    """Seconds by part since it was made; what runs inside no part is bookkeeping."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._now()
        self._spent: dict[Part, float] = {"advance": 0.0, "probes": 0.0, "steps": 0.0}

    @contextmanager
    def timing(self, part: Part) -> Iterator[None]:
        """Count what runs inside as ``part``; a part inside another counts as the inner one alone."""
        began, inside = self._now(), sum(self._spent.values())
        try:
            yield
        finally:
            self._spent[part] += self._now() - began - (sum(self._spent.values()) - inside)

    def seconds(self) -> dict[Part, float]:
        """Seconds by part so far; together they are the time since the stopwatch was made."""
        rest = self._now() - self._began - sum(self._spent.values())
        return {part: round(value, 3) for part, value in (self._spent | {"bookkeeping": max(0.0, rest)}).items()}

    def _now(self) -> float:
        """The time once the device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()
