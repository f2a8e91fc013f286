"""Running layers as if they were float, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from .conv import QuantConv2d
from .linear import QuantLinear
from .matmul import QuantMatMul

QuantLayer = QuantLinear | QuantConv2d | QuantMatMul


def quantizer_slots(layer: QuantLayer) -> tuple[str, ...]:
    """Attribute names of the layer's quantizers."""
    return ("a_quantizer", "b_quantizer") if isinstance(layer, QuantMatMul) else ("input_quantizer", "weight_quantizer")


@contextmanager
def float_layers(layers: Iterable[QuantLayer], *, keep_weights: bool = False) -> Iterator[None]:
    """Quantizers of ``layers`` are identities inside the context and back afterwards, also on error.

    ``keep_weights`` leaves quantized weights as they are: only activations are float.
    """
    saved = [
        (layer, slot, getattr(layer, slot))
        for layer in layers
        for slot in quantizer_slots(layer)
        if not (keep_weights and slot == "weight_quantizer")
    ]
    try:
        for layer, slot, _ in saved:
            setattr(layer, slot, nn.Identity())
        yield
    finally:
        for layer, slot, quantizer in saved:
            setattr(layer, slot, quantizer)
