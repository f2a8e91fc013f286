"""Calibration: the scale search before reconstruction (method notes, section 5)."""

from .run import calibrate, run_block

__all__ = ["calibrate", "run_block"]
