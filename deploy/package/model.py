"""The model that is packaged: a file the server would take, and every file it consists of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import numpy.typing as npt

from fimaq.deploy.serve.loading import load
from fimaq.deploy.serve.repository import FIRST, MODEL_FILE
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.image_input import ImageInput

if TYPE_CHECKING:
    import onnx


@final
@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX file that was opened and run as ``serve`` does before it answers requests.

    ``external`` names the files beside it that hold weights, relative to its folder.
    """

    path: Path
    predictor: OrtPredictor
    opset: int
    ir_version: int
    external: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises InputError as ``serve`` does, and for weights under a name that a copy could not keep."""
        import onnx

        predictor = load(path, "cpu", threads=1)
        proto = onnx.load(path, load_external_data=False)
        opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
        return cls(path, predictor, opset, proto.ir_version, _external_files(path, proto.graph))

    @property
    def batch(self) -> int | None:
        """Images the file takes at a time, where it fixes that."""
        return self.predictor.fixed_batch

    @property
    def image(self) -> ImageInput:
        """The form of one image."""
        return self.predictor.image

    @property
    def labels(self) -> list[str]:
        """A name for each logit."""
        names: list[str] = self.predictor.classes["names"]
        return names

    @property
    def stored_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.repository("").values())

    def probe(self) -> npt.NDArray[Any]:
        """Two images, or as many as the batch is fixed to, to compare sessions on: noise, always the same.

        Of unit variance; where the file takes pixels, evenly any of them.
        """
        random, shape = np.random.default_rng(0), (self.batch or 2, *self.image.shape)
        if self.image.kind == "uint8":
            return random.integers(0, 256, shape, dtype=np.uint8)
        return random.standard_normal(shape, dtype=np.float32)

    def repository(self, name: str) -> dict[str, Path]:
        """Its files in Triton's layout, which ``serve`` reads too: ``<name>/1/model.onnx``, weights beside it."""
        files = {MODEL_FILE: self.path, **{file: self.path.parent / file for file in self.external}}
        return {f"{name}/{FIRST}/{file}": source for file, source in files.items()}


def _external_files(path: Path, graph: onnx.GraphProto) -> tuple[str, ...]:
    entries = (entry for tensor in _tensors(graph) for entry in tensor.external_data)
    found = sorted({entry.value for entry in entries if entry.key == "location"})
    for file in found:
        if file == MODEL_FILE or ".." in PurePosixPath(file).parts or PurePosixPath(file).is_absolute():
            raise InputError(
                f"{path} keeps weights in {file!r}; wanted a file in its own folder that is not called {MODEL_FILE}. "
                "Save it with its weights inside: onnx.save(onnx.load(FILE), NEW)."
            )
    return tuple(found)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor a graph stores, also in its nodes and in the graphs inside them."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)
