"""The ILSVRC2012 devkit's meta.mat: which wnid each ILSVRC2012_ID stands for.

A reader for as much of MATLAB's level-5 file format as that needs (structs of numbers and text, compressed or not),
so that scipy is not a dependency. https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

META = "meta.mat"
N_CLASSES = 1000

_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXT = {16: "utf-8", 17: "utf-16-le", 4: "utf-16-le", 1: "latin-1", 2: "latin-1"}

Element = tuple[int, bytes]


def wnids_of_ilsvrc_ids(path: Path) -> dict[int, str]:
    """Map ILSVRC2012_ID (1..1000) to wnid. Raises InputError when meta.mat is missing or is not the devkit's."""
    if not path.is_file():
        raise InputError(
            f"{path} is not there: a list of ILSVRC2012 devkit numbers can only be translated with the devkit's "
            f"{META}. Copy it beside the list, or give lines of `name label` or `name wnid`."
        )
    try:
        synsets = _variables(path.read_bytes())["synsets"]
        wnids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except (OSError, struct.error, zlib.error, KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is not the ILSVRC2012 devkit's {META} ({type(error).__name__}: {error}); wanted its table "
            "`synsets`. Copy it from the devkit again."
        ) from error
    return {number: wnid for number, wnid in wnids.items() if 1 <= number <= N_CLASSES}


def _variables(data: bytes) -> dict[str, Any]:
    """Every variable of the file by name; a struct array is a list of dicts."""
    if data[126:128] != b"IM":
        raise ValueError("no little-endian MATLAB level-5 file")
    return dict(_matrix(body) for kind, body in _elements(data[128:]) if kind == _MATRIX)


def _elements(data: bytes) -> Iterator[Element]:
    """Type and content of the data elements in a row."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small element: size and type in one word, up to four bytes of content in the next
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
            continue
        body = data[at + 8 : at + 8 + size]
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(body))
            at += 8 + size
        else:
            yield kind, body
            at += 8 + size + -size % 8


def _matrix(body: bytes) -> tuple[str, Any]:
    """Name and value of one array."""
    if not body:
        return "", []
    (_, flags), (_, dims), (_, name), *content = _elements(body)
    class_, count = flags[0], math.prod(np.frombuffer(dims, "<i4").tolist())
    return name.decode("latin-1"), _value(class_, count, content)


def _value(class_: int, count: int, content: list[Element]) -> Any:
    if class_ == _STRUCT:
        width = int(np.frombuffer(content[0][1], "<i4")[0])
        names = [_name(content[1][1], at, width) for at in range(0, len(content[1][1]), width)]
        values = [_matrix(body)[1] for _, body in content[2:]]
        return [dict(zip(names, values[i * len(names) : (i + 1) * len(names)], strict=True)) for i in range(count)]
    if not content:
        return "" if class_ == _CHAR else []
    kind, data = content[0]
    if class_ == _CHAR:
        return data.decode(_TEXT[kind])
    if kind not in _DTYPES:
        return []  # nested cells and the like: nothing that is looked at
    values = np.frombuffer(data, _DTYPES[kind]).tolist()
    return values[0] if count == 1 else values


def _name(names: bytes, at: int, width: int) -> str:
    return names[at : at + width].split(b"\0")[0].decode("latin-1")
