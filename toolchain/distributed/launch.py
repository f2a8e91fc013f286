"""What a launcher (torchrun, or anything that sets the same variables) says about this process. Without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from ..errors import EnvironmentProblem

RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
"""Variables of torch.distributed's ``env://``, beside MASTER_ADDR and MASTER_PORT."""

ADDRESS = "MASTER_ADDR"


@final
@dataclass(frozen=True)
class Launch:
    """Process ``rank`` of ``size``, number ``local_rank`` of ``local_size`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, stdout and progress."""
        return self.rank == 0


SINGLE = Launch()


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """This process's place; one of one where no launcher started it. EnvironmentProblem for values that cannot be."""
    if ADDRESS not in environ or RANK not in environ:
        return SINGLE
    values = {name: environ.get(name, "") for name in (RANK, SIZE, LOCAL_RANK, LOCAL_SIZE)}
    if all(value.isdecimal() for value in values.values()):
        launch = Launch(*map(int, values.values()))
        if launch.rank < launch.size and launch.local_rank < launch.local_size <= launch.size:
            return launch
    got = ", ".join(f"{name}={value!r}" for name, value in values.items())
    raise EnvironmentProblem(
        f"the launcher's variables are {got}; wanted ranks below their sizes. Start with torchrun, or unset {RANK}."
    )


def is_first() -> bool:
    """Whether this process is the one to speak; also where ``read_launch`` has something to complain about."""
    try:
        return read_launch().first
    except EnvironmentProblem:
        return True
