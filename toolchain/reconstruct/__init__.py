"""Block reconstruction (method notes, sections 1, 3 and 6)."""

from .run import reconstruct

__all__ = ["reconstruct"]
