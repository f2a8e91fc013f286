"""Which of many rows are one process's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Share:
    """Rows ``start`` to ``stop`` of ``of``."""

    start: int
    stop: int
    of: int

    def __len__(self) -> int:
        """Rows in the share."""
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """To take them from a tensor with all rows."""
        return slice(self.start, self.stop)


def even_share(rank: int, size: int, n: int) -> Share:
    """Share ``rank`` of ``n`` rows cut in ``size`` consecutive shares whose lengths differ by one at most."""
    return Share(rank * n // size, (rank + 1) * n // size, n)
