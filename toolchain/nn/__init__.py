"""Quantized layers: each is ``from_float`` (or a wrapper) and ``forward``, nothing else."""

from .attention import InterceptAttention, QuantAttention
from .conv import QuantConv2d
from .linear import QuantLinear
from .matmul import QuantMatMul
from .modes import QuantLayer, float_layers, quantizer_slots

__all__ = [
    "InterceptAttention",
    "QuantAttention",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantMatMul",
    "float_layers",
    "quantizer_slots",
]
