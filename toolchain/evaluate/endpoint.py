"""A model behind a server as a Predictor: what is measured is what clients get."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data import ImageSet, decode_rgb
from ..errors import EnvironmentProblem, InputError
from ..image_input import ImageInput, InputKind
from ..preprocess import Preprocessing
from .ort import CLASSES, PREPROCESSING, OrtPredictor
from .prefetch import Prepare
from .v2_client import BINARY_EXTENSION, DATATYPES, Refused, Server, model_path

Wire = Literal["tensor", "image"]

KINDS: tuple[InputKind, ...] = ("float", "uint8")
"""Forms in which a server may take images; its metadata tells which."""

SHA256, BYTES, PROVIDER = "fimaq.sha256", "fimaq.bytes", "fimaq.provider"
"""Parameters of a model's configuration on a server that says which file it serves."""

IMAGE_EXTENSION = "image_bodies"
"""Of servers that take encoded images."""

NO_IMAGE = (400, 415)
"""Statuses of an image that cannot be decoded or is of a format that is not taken; 413 is a limit of the server's."""

MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))


@final
class EndpointPredictor:
    """A model on a server that speaks the Open Inference Protocol (V2) over HTTP.

    ``model`` is its name there (None: the only one). How images become its input, its classes and its hash come from
    ``local``, the file that was deployed, and else from the parameters of the model's configuration, where
    ``fimaq-tool serve`` and the repositories of ``fimaq-tool package`` have them. What both tell must agree.

    With ``wire="tensor"`` images are preprocessed here and any server will do; with ``wire="image"`` they are sent as
    they lie on disk and the server preprocesses them: give ``prepare`` to ``evaluate``, too.

    Raises InputError where the server has no such model, does not tell enough or takes no images, EnvironmentProblem
    where it does not answer.
    """

    def __init__(
        self, server: Server, model: str | None = None, *, wire: Wire = "tensor", local: OrtPredictor | None = None
    ) -> None:
        self._server, self._wire = server, wire
        about = server.get("")
        if wire == "image" and IMAGE_EXTENSION not in about.get("extensions", []):
            raise InputError(
                f"{server.url} takes no encoded images. Use --wire tensor, or a server of fimaq-tool serve."
            )
        name = model or _only_model(server)
        self._path = model_path(name)
        metadata = server.get(self._path)
        config = server.find(f"{self._path}/config") or {}
        told = {key: value.get("string_value") for key, value in config.get("parameters", {}).items()}
        self.model = f"{server.url}/v2{self._path}"
        self._require_same(told, local)
        self.preprocessing = local.preprocessing if local else self._preprocessing(told)
        self.classes: Mapping[str, Any] = local.classes if local else self._classes(told, metadata)
        self.sha256: str = local.sha256 if local else told[SHA256]
        self.bytes: int = local.bytes if local else int(told[BYTES])
        self.provider = str(told.get(PROVIDER) or metadata.get("platform") or "unknown")
        self._input, self.image = self._read_input(metadata, local)
        self._most: int | None = config.get("max_batch_size") or None
        self._fixed = _fixed_batch(metadata)
        self._binary = BINARY_EXTENSION in about.get("extensions", [])
        self.environment: Mapping[str, Any] = {
            "endpoint": server.url,
            "wire": wire,
            "server": f"{about.get('name', 'unknown')} {about.get('version', '')}".strip(),
            "model_versions": metadata.get("versions", []),
        }

    def __call__(self, batch: npt.NDArray[Any], /) -> npt.NDArray[np.float32]:
        """Logits ``[b, classes]`` of images in the form ``image``; with ``wire="image"`` of what ``prepare`` made."""
        if self._wire == "image":
            return batch
        size = self._fixed or self._most or len(batch)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return np.concatenate([self._logits(part) for part in parts])

    def _logits(self, part: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Of at most as many images as the server takes at a time; to a fixed batch black ones are added."""
        filler = np.zeros(((self._fixed or len(part)) - len(part), *part.shape[1:]), part.dtype)
        batch = np.concatenate([part, filler]) if len(filler) else part
        return self._server.infer_tensor(self._path, self._input, batch, self._binary)[: len(part)]

    @property
    def prepare(self) -> Prepare | None:
        """For ``wire="image"``: send a sample as it is, and get its logits."""
        return self._send_image if self._wire == "image" else None

    def _send_image(self, images: ImageSet, index: int) -> npt.NDArray[np.float32]:
        name = images.sample_ids[index]
        try:
            sample = images.read(index)
        except OSError as error:
            raise InputError(f"image {name} in {images.source} cannot be read ({error}).") from error
        data, media_type = _encoded(sample, name)
        try:
            logits: npt.NDArray[np.float32] = self._server.infer_image(self._path, data, media_type)[0]
        except InputError as error:
            if isinstance(error, Refused) and error.status in NO_IMAGE:
                raise InputError(f"image {name} in {images.source}: {error}") from error
            # Not the image's fault: it must not be left out as if it were corrupt.
            raise EnvironmentProblem(str(error)) from error
        return logits

    def _require_same(self, told: Mapping[str, Any], local: OrtPredictor | None) -> None:
        if local is not None and told.get(SHA256) not in (None, local.sha256):
            raise InputError(
                f"{self.model} serves the file with sha256 {told[SHA256]}; {local.model} has {local.sha256}. "
                "Give the file that is served, or none."
            )

    def _preprocessing(self, told: Mapping[str, Any]) -> Preprocessing:
        missing = [key for key in (PREPROCESSING, SHA256, BYTES) if key not in told]
        if missing:
            raise InputError(
                f"the configuration of {self.model} does not tell {', '.join(missing)}, so how images become its "
                "input, or which file it is, is not known. Give the file that is served as well: "
                "fimaq-tool evaluate MODEL.onnx --endpoint URL."
            )
        return Preprocessing.from_json(told[PREPROCESSING])

    def _classes(self, told: Mapping[str, Any], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            classes: dict[str, Any] = json.loads(told[CLASSES])
            if len(classes["names"]) != metadata["outputs"][0]["shape"][-1]:
                raise ValueError("another number than logits")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"the configuration of {self.model} does not tell its classes ({error!r}). Give the file "
                "that is served."
            ) from error
        return classes

    def _read_input(self, metadata: Mapping[str, Any], local: OrtPredictor | None) -> tuple[str, ImageInput]:
        """Name of the input, and the form of an image; a file beside it has only one."""
        forms = [local.image] if local else [ImageInput(self.preprocessing, kind) for kind in KINDS]
        try:
            (tensor,) = metadata["inputs"]
            told = tensor["datatype"], tuple(int(side) for side in tensor["shape"])[-3:]
            for form in forms:
                if told == (DATATYPES[form.dtype.name], form.shape):
                    return str(tensor["name"]), form
        except (KeyError, TypeError, ValueError):
            pass
        wanted = " or ".join(f"{DATATYPES[form.dtype.name]} [batch, {str(form.shape)[1:-1]}]" for form in forms)
        raise InputError(
            f"{self.model} takes {json.dumps(metadata.get('inputs'))[:200]}; wanted one {wanted}. "
            "Give the model this file was deployed as with --model."
        )


def _fixed_batch(metadata: Mapping[str, Any]) -> int | None:
    """Images a model always takes at a time, where its metadata says so: Triton does of a file with a fixed batch."""
    side = int(metadata["inputs"][0]["shape"][0])
    return side if len(metadata["inputs"][0]["shape"]) == 4 and side > 0 else None


def _only_model(server: Server) -> str:
    names: list[str] = sorted({entry["name"] for entry in server.post("/repository/index", {"ready": True})})
    if not names:
        raise InputError(f"{server.url} serves no model. Load one: POST /v2/repository/models/NAME/load.")
    if len(names) > 1:
        raise InputError(
            f"{server.url} serves {len(names)} models ({', '.join(names[:6])}); wanted one. Name it: --model."
        )
    return names[0]


def _encoded(sample: bytes | Image.Image, name: str) -> tuple[bytes, str]:
    """A sample and its content type; what is neither JPEG, PNG nor WebP goes as PNG, pixel for pixel."""
    if isinstance(sample, bytes):
        for magic, media_type in MAGIC:
            if sample.startswith(magic):
                return sample, media_type
        if sample[:4] == b"RIFF" and sample[8:12] == b"WEBP":
            return sample, "image/webp"
        sample = decode_rgb(sample, name)
    buffer = io.BytesIO()
    sample.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue(), "image/png"
