"""A model repository for Triton Inference Server and its ONNX Runtime backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from fimaq.deploy.serve.describe import config_parameters
from fimaq.deploy.serve.settings import Limits
from fimaq.toolchain.errors import InputError, UsageError
from fimaq.toolchain.evaluate.v2_client import DATATYPES
from fimaq.toolchain.image_input import InputKind

from .folder import Files
from .model import Model
from .names import PATH_NAME, NameRule
from .text import fill
from .triton_logits import same_logits

DATA_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "float64": "TYPE_FP64"}

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}

SENT: dict[InputKind, str] = {
    "float": "the preprocessed image",
    "uint8": "the pixels of the scaled and cropped image, which the model normalises itself",
}
"""What the README says of an image."""

PARAMETER = "parameters {{ key: {} value {{ string_value: {} }} }}\n"

THREADS = "intra_op_thread_count"
"""What the ONNX Runtime backend calls the threads of one run."""


@final
@dataclass(frozen=True)
class Triton:
    """The folder is the repository.

    ``max_batch`` images at a time (None: as many as ``serve`` takes), ``instances`` of the model side by side, each
    with ``threads`` (None: every core), on the CPU or with CUDA.
    """

    target: ClassVar[str] = "triton"
    names: ClassVar[NameRule] = PATH_NAME

    max_batch: int | None = None
    instances: int = 1
    threads: int | None = None
    provider: Literal["cpu", "cuda"] = "cpu"

    def files(self, model: Model, name: str) -> Files:
        """The model, its config.pbtxt and its labels.

        Raises InputError where Triton would compute other logits, UsageError for ``max_batch`` where the file fixes it.
        """
        if model.batch is not None and self.max_batch is not None:
            raise UsageError(
                f"--max-batch is {self.max_batch} and {model.path} always takes {model.batch} images at a time. "
                "Leave out --max-batch."
            )
        logits = same_logits(model)
        return {
            **model.repository(name),
            f"{name}/config.pbtxt": self._config(model, name, _data_type(model, logits.dtype.name)),
            f"{name}/labels.txt": "".join(f"{' '.join(label.splitlines())}\n" for label in model.labels),
            "README.md": fill(
                "triton.md", name=name, opset=model.opset, ir_version=model.ir_version, sent=SENT[model.image.kind]
            ),
        }

    def _config(self, model: Model, name: str, output_type: str) -> str:
        limits = Limits()
        fixed = [] if model.batch is None else [model.batch]
        config = fill(
            "triton.pbtxt",
            name=quoted(name),
            sha256=model.predictor.sha256,
            max_batch=0 if fixed else self.max_batch or limits.batch,
            input=quoted(model.predictor.input_name),
            input_type=f"TYPE_{DATATYPES[model.image.dtype.name]}",
            input_dims=", ".join(map(str, [*fixed, *model.image.shape])),
            output=quoted(model.predictor.output_name),
            output_type=output_type,
            output_dims=", ".join(map(str, [*fixed, len(model.labels)])),
            # Without a batch axis classes are counted over the whole output, so several images have no labels.
            labels='\n    label_filename: "labels.txt"' if model.batch in (None, 1) else "",
            instances=self.instances,
            kind=KINDS[self.provider],
        )
        if not fixed:
            config += fill("triton-batching.pbtxt", queue=limits.queue, microseconds=round(limits.seconds * 1e6))
        parameters = config_parameters(model.predictor, self.provider)
        if self.threads is not None:
            parameters[THREADS] = str(self.threads)
        return config + "".join(PARAMETER.format(quoted(key), quoted(value)) for key, value in parameters.items())


def quoted(text: str) -> str:
    """A protobuf text-format string: printable ASCII as it is, every other byte of the UTF-8 in octal."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _data_type(model: Model, found: str) -> str:
    if found not in DATA_TYPES:
        raise InputError(
            f"{model.path} gives logits of type {found}; wanted one of {', '.join(DATA_TYPES)}. Export a classifier."
        )
    return DATA_TYPES[found]
