"""The contract every quantizer keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..spec import QuantSpec


class Quantizer(nn.Module, ABC):
    """Maps a tensor onto an unsigned affine grid and back.

    ``scale`` and ``zero_point`` broadcast against the tensor that is quantized; zero points are
    integers between ``spec.qmin`` and ``spec.qmax``, held as floats.
    """

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``; same shape and dtype."""

    @abstractmethod
    def to_codes(self, x: Tensor) -> Tensor:
        """Integer codes of ``x`` as uint8, between ``spec.qmin`` and ``spec.qmax``."""
