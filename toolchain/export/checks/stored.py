"""Reading quantized layers back from a finished ONNX file, to compare them with the run. No torch.

Nothing is taken from what the exporter remembers: each layer's product is found in the graph, and from its operands
the way back to codes, scales and zero points is walked, so that wrong wiring is found as well as wrong numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ExportError
from ..passes.activations import clip_ends
from ..passes.annotate import WIDER
from ..passes.emit import UNIT
from ..passes.integer_linear import OPERATOR
from ..passes.zero_points import SCALES, ZERO_POINTS

PRODUCTS = ("MatMul", "Conv", OPERATOR)
BETWEEN = frozenset({"Clip", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear", "Mul"})
"""Operators between a quantized tensor's grid and its product."""

AFTER = frozenset({"Mul", "Sub", "Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear"})
"""Operators between a product and its bias."""

TOKEN = "token/"
"""How the names of the nodes begin that cut one token out of an activation."""


@final
class StoredLayers:
    """The quantized layers of an ONNX model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._consumers = {name: node for node in model.graph.node for name in node.input}
        self._nodes = {node.name: node for node in model.graph.node}

    def weight(self, layer: str, shape: tuple[int, ...], bits: int) -> dict[str, np.ndarray]:
        """Codes (in ``shape``), scales ``[o]`` and zero points ``[o]`` that the layer's product reads."""
        parts = [self._weight(part, bits) for part in self._parts(layer)]
        whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return whole | {"codes": whole["codes"].reshape(shape)}

    def _weight(self, layer: str, bits: int) -> dict[str, np.ndarray]:
        product = self._product(layer)
        if product.op_type == OPERATOR:
            source, scale, zero_point = product.input[1], product.input[3], product.input[5]
        else:
            dequantize = self._producers.get(product.input[1])
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                raise ExportError(f"layer {layer!r}: the weight does not come from DequantizeLinear.")
            source, scale, zero_point = dequantize.input
            if (beside := self._nodes.get(f"{layer}/b/{ZERO_POINTS}/DequantizeLinear")) is not None:
                zero_point, scale = beside.input[0], self._nodes[f"{layer}/{SCALES}/Mul"].input[0]
            axis = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1)
            if axis != (0 if product.op_type == "Conv" else 1):
                raise ExportError(f"layer {layer!r}: weight scales run along axis {axis}.")
        cast = self._producers.get(source)
        codes = _unsigned(self._constant(source if cast is None else cast.input[0]), bits)
        return {
            "codes": codes if product.op_type == "Conv" else codes.T,
            "scale": self._constant(scale),
            "zero_point": _unsigned(self._constant(zero_point), bits),
        }

    def activation(self, layer: str, operand: int, bits: int) -> dict[str, np.ndarray]:
        """Scale and zero point of the grid that operand 0 or 1 of the layer's product was quantized on."""
        parts = [self._activation(part, operand, bits) for part in self._parts(layer)]
        if not all(_equal(*sorted((part[key], parts[0][key]), key=np.size)) for part in parts for key in part):
            raise ExportError(f"layer {layer!r}: operand {operand} is on one grid here and on another there.")
        return parts[0]

    def _activation(self, layer: str, operand: int, bits: int) -> dict[str, np.ndarray]:
        name = self._product(layer).input[operand]
        low = high = None
        clipped = rounded = False
        while (node := self._producers.get(name)) is not None:
            match node.op_type:
                case "QuantizeLinear" if self._widens(node):
                    pass
                case "QuantizeLinear" if self._constants[node.input[1]].name != UNIT:
                    clipped = clipped or self._clipped_before(layer, operand, node, bits)
                    if not clipped and _container_bits(self._constant(node.input[2])) != bits:
                        raise ExportError(f"layer {layer!r}: operand {operand} is not clipped to {bits} bits.")
                    zero_point = self._constant(node.input[2])
                    own = _unsigned(zero_point, bits) if low is None else _unshared(layer, zero_point, low)
                    return {"scale": self._constant(node.input[1]), "zero_point": own}
                case "QuantizeLinear":
                    zero_point = self._constant(node.input[2])
                    clipped = clipped or _container_bits(zero_point) == bits
                    own = _unsigned(zero_point, bits) if low is None else _unshared(layer, zero_point, low)
                    low, rounded = -own.astype(np.int64), True
                case "Round":
                    rounded = True
                case "Clip" if low is None:
                    ends = np.array([self._constant(end) for end in node.input[1:3]])
                    if not np.array_equal(_unsigned(ends, bits), [0, 2**bits - 1]):
                        raise ExportError(f"layer {layer!r}: operand {operand} is clipped to other than {bits} bits.")
                    clipped = True
                case "Min":
                    high = self._grid(node.input[1])
                case "Max":
                    low = self._grid(node.input[1])
                    if high is None or not np.array_equal(high - low, np.full_like(low, 2**bits - 1)):
                        raise ExportError(f"layer {layer!r}: operand {operand} is clipped to other than {bits} bits.")
                    clipped = True
                case "Div" if low is not None and not clipped:
                    raise ExportError(f"layer {layer!r}: operand {operand} is not clipped to {bits} bits.")
                case "Div" if low is not None and not rounded:
                    raise ExportError(f"layer {layer!r}: operand {operand} is not rounded to integers.")
                case "Div" if low is not None:
                    return {"scale": self._grid(node.input[1]), "zero_point": -low}
                case other if other not in BETWEEN:
                    break
            name = node.input[0]
        raise ExportError(f"layer {layer!r}: operand {operand} is not quantized in the file.")

    def _widens(self, quantize: onnx.NodeProto) -> bool:
        """Whether QuantizeLinear repeats an 8-bit grid in 16 bits, where nothing can be rounded."""
        narrow = self._producers.get(quantize.input[0])
        if narrow is None or narrow.op_type != "DequantizeLinear":
            return False
        scale, zero_point = (self._constant(name) for name in narrow.input[1:3])
        return np.array_equal(self._constant(quantize.input[1]), scale / np.float32(WIDER)) and np.array_equal(
            self._constant(quantize.input[2]), zero_point.astype(np.int64) * WIDER
        )

    def _grid(self, name: str) -> np.ndarray:
        """Numbers of a grid as int64 or float32, those of all tokens where only the one that is computed is read."""
        node = self._producers.get(name)
        if node is not None and node.op_type == "Slice":
            if (place := self._constant(node.input[1]).item()) not in self._tokens():
                raise ExportError(f"{node.input[0]} is read at token {place}, which is not the one that is computed.")
            name = node.input[0]
        array = self._constant(name)
        return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else array

    def _tokens(self) -> set[int]:
        """The tokens that are cut out of an activation."""
        slices = [node for name, node in self._nodes.items() if name.startswith(TOKEN) and node.op_type == "Slice"]
        return {int(self._constant(node.input[1]).item()) for node in slices}

    def _clipped_before(self, layer: str, operand: int, quantize: onnx.NodeProto, bits: int) -> bool:
        """Whether a clip of floats stands before QuantizeLinear; raises ExportError where its ends are others."""
        clip = self._producers.get(quantize.input[0])
        if clip is None or clip.op_type != "Clip":
            return False
        zero_point = _unsigned(self._constant(quantize.input[2]), bits)
        ends = clip_ends(self._constant(quantize.input[1]), zero_point, bits)
        if not all(np.array_equal(self._constant(name), end) for name, end in zip(clip.input[1:3], ends, strict=True)):
            raise ExportError(f"layer {layer!r}: operand {operand} is clipped to other than {bits} bits.")
        return True

    def bias(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """What is added to the layer's product, flat, and half a step of the grid it is on (0 where it is float)."""
        parts = [self._bias(part) for part in self._parts(layer)]
        value, half = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return value, half

    def _bias(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        product = self._product(layer)
        if product.op_type == OPERATOR and len(product.input) > 6:
            return self._addend(product.input[6])
        if product.op_type == "Conv" and len(product.input) > 2:
            return self._addend(product.input[2])
        node = self._consumers.get(product.output[0])
        while node is not None and node.op_type in AFTER:
            node = self._consumers.get(node.output[0])
        constants = [name for name in node.input if self._is_addend(name)] if node is not None else []
        if node is None or node.op_type != "Add" or not constants:
            raise ExportError(f"layer {layer!r} has lost its bias.")
        return self._addend(constants[0])

    def _is_addend(self, name: str) -> bool:
        node = self._producers.get(name)
        return name in self._constants or (node is not None and node.input[0] in self._constants)

    def _addend(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        node = self._producers.get(name)
        if node is None:
            value = self._constant(name).reshape(-1)
            return value, np.zeros_like(value)
        codes, scale, zero_point = (self._constant(part) for part in node.input)
        value = (codes.astype(np.float64) - zero_point) * scale.astype(np.float64)
        return value.reshape(-1), np.broadcast_to(scale.astype(np.float64) / 2, codes.shape).reshape(-1)

    def _parts(self, layer: str) -> list[str]:
        """The layer itself, or ``<layer>.0``, ``<layer>.1``, ... where it was split by its outputs."""
        count = 0
        while any(f"{layer}.{count}/{op_type}" in self._nodes for op_type in PRODUCTS):
            count += 1
        return [f"{layer}.{part}" for part in range(count)] or [layer]

    def _product(self, layer: str) -> onnx.NodeProto:
        for op_type in PRODUCTS:
            if (node := self._nodes.get(f"{layer}/{op_type}")) is not None:
                return node
        raise ExportError(f"layer {layer!r} has no product in the file.")

    def _constant(self, name: str) -> np.ndarray:
        if name not in self._constants:
            raise ExportError(f"{name} is not a constant of the file.")
        return np.asarray(numpy_helper.to_array(self._constants[name]))


def stored_differences(
    model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], bits: Mapping[str, int]
) -> Iterator[str]:
    """Names of the run's tensors that the file does not hold exactly; nothing where all is well.

    ``tensors`` are named as in the run folder; ``bits`` gives for each ``<layer>.weight``, ``<layer>.input``,
    ``<product>.a`` and ``<product>.b`` the bits of its codes.
    """
    stored = StoredLayers(model)
    for name, width in bits.items():
        layer, _, part = name.rpartition(".")
        if part == "weight":
            found = stored.weight(layer, tensors[f"{name}.codes"].shape, width)
            bias = tensors.get(f"model.{layer}.bias")
            if bias is not None and not _near(bias, *stored.bias(layer)):
                yield f"model.{layer}.bias"
        else:
            found = stored.activation(layer, 1 if part == "b" else 0, width)
        joint = np.broadcast_shapes(*(tensors[f"{name}.{key}"].shape for key in ("scale", "zero_point")))
        for key, value in found.items():
            expected = tensors[f"{name}.{key}"]
            whole = expected if part == "weight" else np.broadcast_to(expected, joint)
            if not (_equal(value, expected) or _equal(value, whole)):
                yield f"{name}.{key}"


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """Element for element; one stored number stands for many equal ones."""
    if found.size != expected.size and found.size != 1:
        return False
    return bool(np.all(found.reshape(-1) == expected.reshape(-1)))


def _near(expected: np.ndarray, found: np.ndarray, half: np.ndarray) -> bool:
    """Equal, or where ``found`` is on a grid of its own, the nearest number of that."""
    return found.shape == expected.shape and bool(np.all(abs(found - expected) <= half * (1 + 1e-6)))


def _unshared(layer: str, shared: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Zero points where codes on one shared zero point are bounded from ``least`` on."""
    first = shared.reshape(-1)[0]
    if not np.all(shared == first):
        raise ExportError(f"layer {layer!r}: bounds are set on codes that have no common zero point.")
    return np.asarray(int(first) - least.astype(np.int64))


def _container_bits(zero_point: np.ndarray) -> int:
    """Bits of the integer type a grid is stored in, as in ``uint4``."""
    return int("".join(filter(str.isdigit, zero_point.dtype.name)))


def _unsigned(stored: np.ndarray, bits: int) -> np.ndarray:
    """Codes as the run has them: signed types store ``code - 2**(bits - 1)``."""
    signed = stored.dtype.name.startswith("int")
    return np.asarray(stored.astype(np.int64) + (2 ** (bits - 1) if signed else 0)).astype(np.uint8)
