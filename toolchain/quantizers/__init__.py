"""Quantizers: uniform activations, learned rounding, stored codes, QDrop."""

from .adaround import AdaRoundWeight
from .base import Quantizer
from .coded import CodedWeight
from .qdrop import DropQuantizer, random_mask, without_drop
from .uniform import UniformQuantizer, encode

__all__ = [
    "AdaRoundWeight",
    "CodedWeight",
    "DropQuantizer",
    "Quantizer",
    "UniformQuantizer",
    "encode",
    "random_mask",
    "without_drop",
]
