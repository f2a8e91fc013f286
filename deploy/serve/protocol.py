"""The Open Inference Protocol's rules, whichever way a request came: what an input must be, what an answer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from .batching import Array
from .errors import Malformed
from .model import ServedModel

DATATYPE = "FP32"
"""Of the logits; the models this tool exports have no other."""

CLASSIFICATION, TIMEOUT = "classification", "timeout"
"""Parameters of an output and of a request; a timeout is in microseconds."""


@final
@dataclass(frozen=True)
class TensorHeader:
    """What a request says about a tensor."""

    name: str
    datatype: str
    shape: Sequence[int]


def check_input(model: ServedModel, tensors: Sequence[TensorHeader], most: int) -> tuple[int, ...]:
    """The shape of a request's images. Raises Malformed for anything the model does not take."""
    name, datatype = model.predictor.input_name, model.datatype
    wanted = f"one input {name!r}, {datatype} [1 to {most}, {str(list(model.image.shape))[1:]}"
    if len(tensors) != 1 or tensors[0].name != name or tensors[0].datatype != datatype:
        got = ", ".join(f"{tensor.name!r} {tensor.datatype}" for tensor in tensors[:4]) or "none"
        raise Malformed(f"model {model.name} got the inputs {got}; wanted {wanted}.")
    shape = tuple(tensors[0].shape)
    if len(shape) != 4 or shape[1:] != model.image.shape or not 1 <= shape[0] <= most:
        raise Malformed(f"model {model.name} got shape {list(shape)[:8]}; wanted {wanted}.")
    return shape


def check_outputs(model: ServedModel, outputs: Sequence[tuple[str, Mapping[str, Any]]]) -> int:
    """How many classes are asked for (0: the logits), of outputs with their parameters.

    Raises Malformed for an output the model does not have and for a bad number.
    """
    name = model.predictor.output_name
    if len(outputs) > 1 or any(output != name for output, _ in outputs):
        got = ", ".join(repr(output) for output, _ in outputs[:4])
        raise Malformed(f"model {model.name} was asked for the outputs {got}; wanted {name!r}.")
    wished = outputs[0][1].get(CLASSIFICATION, 0) if outputs else 0
    return classes(wished)


def shown(value: object) -> str:
    """What was sent, for a message: of a list or an object only that, since it may be too deep to be written out."""
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    return kinds.get(type(value)) or repr(str(value)[:40])


def classes(wished: object) -> int:
    """A number of classes. Raises Malformed for anything but a whole number from 0."""
    if isinstance(wished, bool) or not isinstance(wished, int) or wished < 0:
        raise Malformed(f"{CLASSIFICATION} is {shown(wished)}; wanted a number of classes, 0 for the logits.")
    return wished


def seconds(parameters: Mapping[str, Any], most: float) -> float:
    """Time a request gives its answer, at most the server's own. Raises Malformed for a bad ``timeout``."""
    microseconds = parameters.get(TIMEOUT, 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise Malformed(f"{TIMEOUT} is {shown(microseconds)}; wanted microseconds, a whole number from 0.")
    return min(microseconds / 1e6, most) if microseconds else most


def classify(logits: Array, names: Sequence[str], count: int) -> list[list[str]]:
    """The best ``count`` classes of each row as Triton writes them, ``<logit>:<index>:<name>``, best first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    return [
        [f"{row[index]:f}:{index}:{names[index]}" for index in best.tolist()]
        for row, best in zip(logits, order, strict=True)
    ]


def bytes_tensor(rows: list[list[str]]) -> bytes:
    """Strings as a binary tensor of BYTES: each as its length in four bytes, then its bytes."""
    encoded = [text.encode() for row in rows for text in row]
    return b"".join(len(item).to_bytes(4, "little") + item for item in encoded)
