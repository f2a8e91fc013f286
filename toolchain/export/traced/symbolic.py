"""Stand-ins for quantized layers: the same call, traced as ONE ``fimaq::`` operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from ...nn import QuantConv2d, QuantLinear, QuantMatMul
from ...quantizers import CodedWeight, UniformQuantizer
from ..errors import ExportError
from .ops import DOMAIN, VERSION, OpType

Attribute = int | str | Sequence[int]


@final
class SymbolicLinear(nn.Module):
    """``fimaq::QLinear`` in the place of a QuantLinear."""

    def __init__(self, name: str, layer: QuantLinear) -> None:
        super().__init__()
        self.name = name
        self.weight_grid = _weight(name, layer.weight_quantizer)
        self.input_grid = _activation(name, layer.input_quantizer)
        self.offset = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., i]`` to ``[..., o]``."""
        attributes = {"weight_bits": self.weight_grid.spec.bits, "activation_bits": self.input_grid.spec.bits}
        shape = (*x.shape[:-1], self.weight_grid.codes.shape[0])
        inputs = [x, *_constants(self.weight_grid), self.offset, self.input_grid.scale, self.input_grid.zero_point]
        return _operator("QLinear", self.name, inputs, attributes, shape)


@final
class SymbolicConv2d(nn.Module):
    """``fimaq::QConv`` in the place of a QuantConv2d."""

    def __init__(self, name: str, layer: QuantConv2d) -> None:
        super().__init__()
        self.name = name
        self.weight_grid = _weight(name, layer.weight_quantizer)
        self.input_grid = _activation(name, layer.input_quantizer)
        self.offset = layer.bias
        self.stride, self.padding, self.dilation, self.groups = (
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[b, i, h, w]`` to ``[b, o, y, x]``."""
        attributes: dict[str, Attribute] = {
            "weight_bits": self.weight_grid.spec.bits,
            "activation_bits": self.input_grid.spec.bits,
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }
        kernel = self.weight_grid.codes.shape[2:]
        spans = zip(x.shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True)
        size = [(n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, pad, dilation in spans]
        inputs = [x, *_constants(self.weight_grid), self.offset, self.input_grid.scale, self.input_grid.zero_point]
        return _operator("QConv", self.name, inputs, attributes, (x.shape[0], self.weight_grid.codes.shape[0], *size))


@final
class SymbolicMatMul(nn.Module):
    """``fimaq::QMatMul`` in the place of a QuantMatMul."""

    def __init__(self, name: str, layer: QuantMatMul) -> None:
        super().__init__()
        self.name = name
        self.transpose_b = layer.transpose_b
        self.a_grid = _activation(name, layer.a_quantizer)
        self.b_grid = _activation(name, layer.b_quantizer)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``[b, h, t, k]`` and ``[b, h, n, k]`` (or ``[b, h, k, n]``) to ``[b, h, t, n]``."""
        attributes = {
            "a_bits": self.a_grid.spec.bits,
            "b_bits": self.b_grid.spec.bits,
            "transpose_b": int(self.transpose_b),
        }
        shape = (*a.shape[:-1], b.shape[-2] if self.transpose_b else b.shape[-1])
        inputs = [a, b, self.a_grid.scale, self.a_grid.zero_point, self.b_grid.scale, self.b_grid.zero_point]
        return _operator("QMatMul", self.name, inputs, attributes, shape)


def symbolic_layer(name: str, layer: nn.Module) -> nn.Module:
    """The stand-in for a layer; raises ExportError unless its quantizers are in their final state."""
    match layer:
        case QuantLinear():
            return SymbolicLinear(name, layer)
        case QuantConv2d():
            return SymbolicConv2d(name, layer)
        case QuantMatMul():
            return SymbolicMatMul(name, layer)
        case other:
            raise ExportError(
                f"layer {name!r} is a {type(other).__name__}: wanted QuantLinear, QuantConv2d or QuantMatMul."
            )


def _weight(name: str, quantizer: nn.Module) -> CodedWeight:
    if not isinstance(quantizer, CodedWeight):
        raise ExportError(
            f"layer {name!r} has weights in {type(quantizer).__name__}: wanted stored codes (CodedWeight). "
            "Finish the quantization before export."
        )
    return quantizer


def _activation(name: str, quantizer: nn.Module) -> UniformQuantizer:
    if not isinstance(quantizer, UniformQuantizer):
        raise ExportError(
            f"layer {name!r} has an input in {type(quantizer).__name__}: wanted fixed scales (UniformQuantizer). "
            "Finish the quantization before export."
        )
    return quantizer


def _constants(weight: CodedWeight) -> list[Tensor]:
    return [weight.codes, weight.scale, weight.zero_point]


def _operator(
    kind: OpType,
    layer: str,
    inputs: Sequence[Tensor | None],
    attributes: dict[str, Attribute] | dict[str, int],
    shape: Sequence[int | torch.SymInt],
) -> Tensor:
    """One symbolic operator; while tracing it stands for its result and computes nothing."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", inputs, {"layer": layer, **attributes}, dtype=torch.float32, shape=shape, version=VERSION
    )
