"""Calibration: the scale search before reconstruction (method notes, section 5)."""

from .grids import restore_grids
from .run import calibrate, run_block

__all__ = ["calibrate", "restore_grids", "run_block"]
