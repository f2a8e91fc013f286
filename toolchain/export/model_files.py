"""A model as files that appear whole: one ONNX file or, where that would be too large, one with its weights beside it.

The name of the file of weights ends in its own hash. So the rename of the ONNX file is the moment at which a new pair
takes the place of an old one: a kill before it leaves the old pair, never an old half with a new one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import final

import onnx
import onnx_ir as ir
from onnx_ir.serde import serialize_model

from ..errors import InputError
from ..external import DATA, DataFile

EXTERNAL_FROM = 3 * 2**29
"""Bytes of weights from which on they go beside: a protobuf holds 2 GiB, and checks add constants of their own."""

INSIDE = 1024
"""Bytes of a tensor that stays inside in any case: shapes, which type inference reads, and scales."""

ALIGNMENT = 4096
"""Each tensor begins at a multiple, for runtimes that map the file."""


@final
class ModelFiles:
    """A temporary ``folder`` in which the files of ``out`` lie while they are checked."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = folder
        self.out = out
        self.data: DataFile | None = None

    def save(self, model: ir.Model, name: str | None = None) -> Path:
        """Write a model as the file ``name`` (None: the one that will be ``out``).

        Its large tensors, where they are too many, move to a file first; models that share tensors share that file.
        """
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        if self.data is None and sum(tensor.nbytes for tensor in tensors) >= EXTERNAL_FROM:
            self.data = self._move_weights(model.graph)
        if self.data is not None:
            model.metadata_props[DATA] = self.data.to_json()
        return self.write(serialize_model(model), name or self.out.name)

    def write(self, proto: onnx.ModelProto, name: str) -> Path:
        """Write a protobuf, which may refer to the weights in the folder, as the file ``name``."""
        path = self.folder / name
        with _writing(self.out), path.open("wb") as file:
            file.write(proto.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        return path

    def _move_weights(self, graph: ir.Graph) -> DataFile:
        """Write large initializers to the file of weights one by one and put references in their places."""
        moved = [
            (value, tensor)
            for value in graph.initializers.values()
            if (tensor := value.const_value) is not None and tensor.nbytes > INSIDE
        ]
        digest, end, places = hashlib.sha256(), 0, []
        temporary = self.folder / "weights"
        with _writing(self.out), temporary.open("wb") as file:
            for _, tensor in moved:
                content = bytes(-end % ALIGNMENT) + tensor.tobytes()
                file.write(content)
                digest.update(content)
                end += len(content)
                places.append(end - tensor.nbytes)
            file.flush()
            os.fsync(file.fileno())
        data = DataFile(f"{self.out.name}.{digest.hexdigest()[:8]}.data", end, digest.hexdigest())
        temporary.rename(self.folder / data.file)
        for (value, tensor), offset in zip(moved, places, strict=True):
            assert isinstance(tensor.shape, ir.Shape)
            value.const_value = ir.ExternalTensor(
                data.file,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=tensor.shape,
                name=value.name or "",
                base_dir=self.folder,
            )
        return data


@contextmanager
def whole_model(out: Path) -> Iterator[ModelFiles]:
    """A folder for the files of ``out``; what was saved there under its name takes its place when the context ends.

    Files of weights of an earlier ``out`` go away then. Raises InputError where it cannot be written.
    """
    folder = out.with_name(f".{out.name}.{token_hex(4)}.tmp")
    files = ModelFiles(folder, out)
    try:
        with _writing(out):
            folder.mkdir(parents=True)
        yield files
        with _writing(out):
            _put_in_place(files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(files: ModelFiles) -> None:
    out, data = files.out, None if files.data is None else files.data.file
    if data is not None:
        (files.folder / data).replace(out.with_name(data))
    (files.folder / out.name).replace(out)
    for path in out.parent.iterdir():
        if path.name != data and re.fullmatch(rf"{re.escape(out.name)}\.[0-9a-f]{{8}}\.data", path.name):
            path.unlink()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error}). Free some space or give another -o.") from error
