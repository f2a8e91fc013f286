"""An ONNX file as a Predictor: everything it needs is in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..external import DataFile, stored_bytes
from ..image_input import ImageInput, InputKind
from ..preprocess import Preprocessing
from ..runtime import Provider, open_session, run_session, usable_cores

FORMAT, PREPROCESSING, CLASSES = "fimaq.format", "fimaq.preprocessing", "fimaq.classes"
"""Keys of the file's metadata_props."""

KNOWN_FORMAT = "1"

EXAMPLE = Preprocessing(224, 224, 0.9, "center", "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What many models of ImageNet take, to show the form."""

FLOAT = "tensor(float)"
KINDS: Mapping[str, InputKind] = {FLOAT: "float", "tensor(uint8)": "uint8"}
"""How images are taken, by ONNX Runtime's name of the input's type."""


@final
class OrtPredictor:
    """An ONNX file in an ONNX Runtime session.

    ``threads=None`` uses every core. ``metadata`` is the file's metadata_props as written;
    ``fixed_batch`` the batch size where the file fixes it.

    Raises InputError when the file is not ONNX, does not carry ``fimaq.preprocessing``, or has inputs or outputs of
    another shape than image ``[batch, 3, h, w]`` (uint8: ``[batch, h, w, 3]``) and logits ``[batch, classes]``;
    EnvironmentProblem for a provider that is not there.
    """

    def __init__(self, path: Path | str, provider: Provider = "cpu", threads: int | None = None) -> None:
        self._session = open_session(path, provider, threads, spin=False)  # images are decoded on the same cores
        self.model = str(path)
        with Path(path).open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.provider: str = provider
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        if (data := DataFile.of(Path(path), self.metadata)) is not None:
            data.require_content(Path(path))
        self.bytes = stored_bytes(Path(path), self.metadata)
        self.preprocessing = self._read_preprocessing()
        self.input_name, self.fixed_batch, self.image = self._read_input()
        self.output_name: str = self._session.get_outputs()[0].name
        self.classes = self._read_classes()
        self.environment: Mapping[str, Any] = {"threads": threads or usable_cores()}

    def __call__(self, batch: npt.NDArray[Any], /) -> npt.NDArray[np.float32]:
        """Logits ``[b, classes]`` of images in the form ``image``; a fixed batch is fed that many at a time."""
        if self.fixed_batch is None or len(batch) == self.fixed_batch:
            return self._run(batch)
        logits = []
        for start in range(0, len(batch), self.fixed_batch):
            part = batch[start : start + self.fixed_batch]
            filler = np.zeros((self.fixed_batch - len(part), *part.shape[1:]), dtype=part.dtype)
            logits.append(self._run(np.concatenate([part, filler]))[: len(part)])
        return np.concatenate(logits)

    def _run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return run_session(self._session, {self.input_name: batch}, self.model)[0]

    def _read_preprocessing(self) -> Preprocessing:
        found = self.metadata.get(FORMAT, KNOWN_FORMAT)
        if found != KNOWN_FORMAT:
            raise InputError(
                f"{self.model} has {FORMAT} {found!r}; this fimaq-tool reads {KNOWN_FORMAT!r}. "
                "Upgrade it: pip install --upgrade fimaq-tool."
            )
        if PREPROCESSING not in self.metadata:
            raise InputError(
                f"{self.model} does not carry {PREPROCESSING} in its metadata, so how images become its input is not "
                "known; it was not written by this tool, or something removed it. Export it with fimaq-tool export, or "
                f"set that key in its metadata_props to what holds, as in {EXAMPLE.to_json()}."
            )
        return Preprocessing.from_json(self.metadata[PREPROCESSING])

    def _read_input(self) -> tuple[str, int | None, ImageInput]:
        """Name of the input, its batch size where that is fixed, and the form of an image."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        image = inputs[0]
        kind = image.type if image.type in KINDS else FLOAT
        form = ImageInput(self.preprocessing, KINDS[kind])
        if len(inputs) != 1 or image.type != kind or not _may_be(image.shape, [None, *form.shape]):
            got = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
            raise InputError(
                f"{self.model} takes {got}; its preprocessing makes one {kind} "
                f"[batch, {str(list(form.shape))[1:]}. "
                "Export it again with fimaq-tool export."
            )
        if len(outputs) != 1 or not _may_be(outputs[0].shape, [None, None]):
            got = ", ".join(f"{item.name} {item.shape}" for item in outputs)
            raise InputError(
                f"{self.model} returns {got}; wanted one output, logits [batch, classes]. Export a classifier."
            )
        return image.name, image.shape[0] if isinstance(image.shape[0], int) else None, form

    def _read_classes(self) -> Mapping[str, Any]:
        """The classes the file names; where it names none, its outputs by number."""
        count = self._session.get_outputs()[0].shape[1]
        if CLASSES not in self.metadata:
            if not isinstance(count, int):
                raise InputError(
                    f"{self.model} does not carry {CLASSES} in its metadata and does not say how many classes it has; "
                    "it was not written by this tool. Export it with fimaq-tool export."
                )
            return {"wnids": None, "names": [str(index) for index in range(count)]}
        try:
            classes: dict[str, Any] = json.loads(self.metadata[CLASSES])
            names = len(classes["names"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.model}: {CLASSES} in its metadata is not {{wnids, names}} ({error!r}). "
                "Export it again with fimaq-tool export."
            ) from error
        if isinstance(count, int) and names != count:
            raise InputError(
                f"{self.model} names {names} classes and returns {count} logits; wanted as many. "
                "Export it again with fimaq-tool export."
            )
        return classes


def _may_be(shape: list[int | str | None], wanted: list[int | None]) -> bool:
    """Whether a shape with free axes (names or None) can be ``wanted`` (None: anything)."""
    return len(shape) == len(wanted) and all(
        want is None or not isinstance(have, int) or have == want for have, want in zip(shape, wanted, strict=True)
    )
