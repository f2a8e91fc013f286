"""Keeping freed memory in the process: on Linux a large tensor otherwise costs a page fault per 4 KB, every time."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc ``mallopt`` parameters."""

NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Tell glibc's malloc to serve large blocks from its heap and not to give them back; elsewhere do nothing.

    A reconstruction step allocates and frees the same hundreds of megabytes again and again: measured 1.4 times as fast
    on 2 CPU cores for a DeiT-Tiny block at batch 32.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
