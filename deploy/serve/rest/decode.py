"""An inference request's body to images: JSON, JSON with binary tensors behind it, or one bare tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import numpy as np
import orjson
from starlette.datastructures import Headers

from fimaq.toolchain.image_input import ImageInput

from ..batching import Images
from ..errors import Malformed
from ..model import ServedModel
from ..protocol import TensorHeader, check_input, check_outputs, seconds, shown
from ..settings import Limits

HEADER_LENGTH = "inference-header-content-length"
"""The header that gives the JSON's length where binary tensors follow it; 0 for a bare tensor without any JSON."""

BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
"""Parameters of a tensor, of a requested output and of a request."""

_SHARED_MEMORY = "shared_memory_region"

NUMBERS = frozenset({int, float})
"""What JSON numbers are read as; true and false are neither."""


@final
@dataclass(frozen=True, eq=False)
class InferRequest:
    """``images`` in the model's form; ``classes`` to name in the answer (0: the logits), and how long it may take."""

    images: Images
    id: str | None
    classes: int
    binary: bool
    seconds: float


def header_length(headers: Headers) -> int | None:
    """Length of the JSON before the binary tensors, None where the request says nothing about any."""
    value = headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 12:
        raise Malformed(f"{HEADER_LENGTH} is {value[:40]!r}; wanted the length of the JSON in bytes.")
    return int(value)


def decode(body: memoryview, length: int | None, model: ServedModel, limits: Limits) -> InferRequest:
    """Read a request for ``model`` whose JSON has ``length`` bytes (None: all of them).

    Raises Malformed, saying what was wrong with it.
    """
    if length == 0:
        return InferRequest(_bare(body, model, limits), id=None, classes=0, binary=True, seconds=limits.seconds)
    if length is not None and length > len(body):
        raise Malformed(f"{HEADER_LENGTH} is {length} and the body has {len(body)} bytes; wanted at most as many.")
    text, tail = body[:length], body[len(body) if length is None else length :]
    request = _object(_parse(text), "the request")
    parameters = _parameters(request)
    tensors = [_object(item, "an input") for item in _list(request, "inputs")]
    outputs = [_object(item, "an output") for item in _list(request, "outputs", optional=True)]
    wished = [(_string(output, "name"), _parameters(output)) for output in outputs]
    if _SHARED_MEMORY in {name for item in (*tensors, *outputs) for name in _parameters(item)}:
        raise Malformed("shared memory is not offered here; send the tensor in the body.")
    headers = [TensorHeader(_string(item, "name"), _string(item, "datatype"), _shape(item)) for item in tensors]
    shape = check_input(model, headers, limits.batch)
    return InferRequest(
        images=_tensor(tensors[0], shape, model.image, tail),
        id=_string(request, "id") if "id" in request else None,
        classes=check_outputs(model, wished),
        binary=_flag(wished[0][1] if wished else {}, BINARY, default=_flag(parameters, BINARY_OUTPUT, default=False)),
        seconds=seconds(parameters, limits.seconds),
    )


def _bare(body: memoryview, model: ServedModel, limits: Limits) -> Images:
    """A body that is nothing but images."""
    form = model.image
    size = form.dtype.itemsize * math.prod(form.shape)
    images, rest = divmod(len(body), size)
    if rest or not 1 <= images <= limits.batch:
        raise Malformed(
            f"the body has {len(body)} bytes; wanted 1 to {limits.batch} images of {size} bytes each, "
            f"{form.dtype} {list(form.shape)}."
        )
    return np.frombuffer(body, dtype=form.dtype.newbyteorder("<")).reshape(images, *form.shape)


def _tensor(item: Mapping[str, Any], shape: tuple[int, ...], form: ImageInput, binary: memoryview) -> Images:
    size = _parameters(item).get(BINARY_SIZE)
    if size is None:
        if binary:
            raise Malformed(f"{len(binary)} bytes follow the JSON and no input has {BINARY_SIZE}.")
        return _from_json(item, shape, form)
    wanted = form.dtype.itemsize * math.prod(shape)
    if "data" in item or size != wanted or len(binary) != wanted:
        also = " and data" if "data" in item else ""
        raise Malformed(
            f"the input has {BINARY_SIZE} {shown(size)}{also}, and {len(binary)} bytes follow the JSON; "
            f"wanted {wanted} bytes for shape {list(shape)}, and no data."
        )
    return np.frombuffer(binary, dtype=form.dtype.newbyteorder("<")).reshape(shape)


def _from_json(item: Mapping[str, Any], shape: tuple[int, ...], form: ImageInput) -> Images:
    """``data``, flat or nested, as the numbers of ``form``."""
    data = item.get("data")
    if not isinstance(data, list):
        raise Malformed(f"the input has no list of numbers as data and no {BINARY_SIZE}; wanted one of them.")
    numbers = _flattened(data)
    kind = "numbers" if NUMBERS.issuperset(map(type, numbers)) else "values that are not all numbers"
    if kind != "numbers" or len(numbers) != math.prod(shape):
        raise Malformed(f"data holds {len(numbers)} {kind}; wanted {math.prod(shape)} numbers for shape {list(shape)}.")
    given = np.array(numbers, np.float64).reshape(shape)
    with np.errstate(over="ignore", invalid="ignore"):
        images = given.astype(form.dtype)
    if form.kind == "uint8" and not np.array_equal(images, given):
        raise Malformed("data holds a number that is no pixel; wanted whole numbers from 0 to 255.")
    if not np.isfinite(images).all():
        raise Malformed("data holds a number that float32 cannot hold.")
    return images


def _flattened(data: list[Any]) -> list[Any]:
    """What nested lists of equal lengths hold, in order; no array is made before it is known to be numbers."""
    while data and isinstance(data[0], list):
        if any(not isinstance(part, list) or len(part) != len(data[0]) for part in data):
            raise Malformed("data is no array: its lists are not all as long.")
        data = list(chain.from_iterable(data))
    return data


def _parse(text: memoryview) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(
            f"the request is no JSON ({error}). Send the protocol's JSON, or an image as the whole body with its type: "
            "curl -H 'Content-Type: image/jpeg' --data-binary @FILE."
        ) from error


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is no JSON object.")
    return value


def _parameters(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(item.get("parameters", {}), "parameters")


def _list(item: Mapping[str, Any], key: str, optional: bool = False) -> list[Any]:
    value = item.get(key, [] if optional else None)
    if not isinstance(value, list):
        raise Malformed(f"the request has no list of {key}.")
    return value


def _string(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise Malformed(f"{key} is {'missing' if value is None else 'no string'}; wanted a string.")
    return value


def _shape(item: Mapping[str, Any]) -> tuple[int, ...]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int for side in shape):
        raise Malformed("shape is no list of whole numbers.")
    return tuple(shape)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Malformed(f"{name} is {shown(value)}; wanted true or false.")
    return value
