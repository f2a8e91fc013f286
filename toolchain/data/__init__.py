"""Images and labels: evaluation sets, and the deterministic calibration sample. Runs without torch."""

from .calibration import calibration_sample
from .image_set import ImageSet
from .images import decode_rgb
from .labels import ClassList
from .open import open_dataset

__all__ = ["ClassList", "ImageSet", "calibration_sample", "decode_rgb", "open_dataset"]
