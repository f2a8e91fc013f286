"""From an ONNX file to what existing serving systems take. Runs without torch."""

from .docker import Docker
from .kserve import KServe
from .run import TARGETS, package
from .triton import Triton

__all__ = ["TARGETS", "Docker", "KServe", "Triton", "package"]
