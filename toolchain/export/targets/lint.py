"""Checking a finished file against what a runtime's documents say it takes, where the runtime itself cannot be run."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ExportError

PRODUCTS = ("MatMul", "Conv")


@final
class Reader:
    """A model with its constants, producers and consumers at hand."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def of_type(self, *op_types: str) -> Iterator[onnx.NodeProto]:
        """Nodes of these types, in order."""
        return (node for node in self.nodes if node.op_type in op_types)

    def array(self, name: str) -> np.ndarray | None:
        """A constant's value; None where the name is not one."""
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return self._consumers.get(name, [])

    def producer_type(self, name: str) -> str:
        """The type of the node that makes a value; empty for an input or constant."""
        node = self.producers.get(name)
        return "" if node is None else node.op_type

    def is_weight(self, dequantize: onnx.NodeProto) -> bool:
        """Whether a DequantizeLinear reads a constant."""
        return dequantize.input[0] in self.constants

    @property
    def opset(self) -> int:
        """Of the standard domain."""
        return next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))


Find = Callable[[Reader], Iterator[str]]
"""Yields, for each place that breaks the rule, the node and what is wrong with it."""


@final
@dataclass(frozen=True)
class Rule:
    """One documented rule: what must hold, the ``document`` that says so, and how to find where it does not."""

    name: str
    document: str
    find: Find


def unsupported(supported: Container[str]) -> Find:
    """Finds operators that are not standard ones of ``supported``."""

    def find(graph: Reader) -> Iterator[str]:
        for node in graph.nodes:
            if node.domain or node.op_type not in supported:
                yield f"{node.name} is a {node.domain or 'standard'} {node.op_type}"

    return find


def violations(model: onnx.ModelProto, rules: Sequence[Rule]) -> list[str]:
    """One line for each rule that is broken, with the first place and the document."""
    reader = Reader(model)
    found = []
    for rule in rules:
        places = list(rule.find(reader))
        if places:
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            found.append(f"{rule.name}: {places[0]}{more} ({rule.document})")
    return found


def check_rules(model: onnx.ModelProto, target: str, rules: Sequence[Rule]) -> None:
    """Raise ExportError for a file that breaks a rule of the target."""
    if found := violations(model, rules):
        raise ExportError(
            f"the file breaks what is documented for {target}: {'; '.join(found)}. Nothing was written. "
            "This is a fault of the exporter: please report it with the model's name."
        )
