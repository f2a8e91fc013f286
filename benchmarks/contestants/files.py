"""The files, made once: each step is left out where its result is there, so that a build can be interrupted."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from fimaq.toolchain.data import calibration_sample, open_dataset
from fimaq.toolchain.errors import InputError
from fimaq.toolchain.evaluate import OrtPredictor
from fimaq.toolchain.export import export_float, export_run
from fimaq.toolchain.files import whole_file, write_whole
from fimaq.toolchain.quantize import QuantizeRequest, quantize
from fimaq.toolchain.recipe import load_recipe

from .lineup import RECIPES

STATIC: dict[str, list[str] | None] = {"static": None, "static-products": ["MatMul", "Gemm", "Conv"]}
"""The operators that ``quantize_static`` quantizes; None is its default, all it can."""


@dataclass(frozen=True)
class Source:
    """What the files are made of: a timm model (``weights`` None: the hub's) and a folder of calibration images."""

    model: str
    calib: Path
    weights: Path | None = None
    samples: int = 128
    """Calibration images, the same ones for this tool and for ``quantize_static``."""


class Images(CalibrationDataReader):
    """Calibration images for ``quantize_static``, one a batch: the ones this tool's runs draw with seed 0."""

    def __init__(self, float_file: Path, source: Source) -> None:
        form = OrtPredictor(float_file, threads=1).image
        images = open_dataset(str(source.calib), require_labels=False)
        chosen = calibration_sample(images, source.samples, seed=0)
        self._batches: Iterator[dict[str, np.ndarray]] = (
            {"image": form.apply(images.load(index))[None]} for index in chosen
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        return next(self._batches, None)


def build(folder: Path, source: Source, files: Collection[str]) -> None:
    """Make those of ``files`` that ``folder`` lacks; say on stderr what is being made.

    Raises InputError for a folder of files from another source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _require_same(folder / "source.json", source)
    for name in files:
        if _missing(path := folder / f"{name}.onnx"):
            _make(path, source)


def _require_same(record: Path, source: Source) -> None:
    wanted = {key: str(value) for key, value in asdict(source).items()}
    if not record.exists():
        write_whole(record, json.dumps(wanted).encode())
    elif (got := json.loads(record.read_text())) != wanted:
        raise InputError(f"{record.parent} has files made of {got}; wanted {wanted}. Name another folder.")


def _make(path: Path, source: Source) -> None:
    folder, name = path.parent, path.stem
    if name == "float":
        export_float(source.model, path, weights=source.weights)
    elif name in STATIC:
        _quantize_static(folder / "float.onnx", path, source, STATIC[name])
    else:
        run = folder / name.removeprefix("openvino-")
        if _missing(run / "manifest.json"):
            recipe, changes = RECIPES[run.name]
            chosen = load_recipe(recipe).with_overrides(calib_samples=source.samples, **changes)
            request = QuantizeRequest(source.model, str(source.calib), run, chosen, source.weights, "cpu", force=True)
            quantize(request)
        # The products of paper presets with the values are float: their scales vary along the sum.
        target = "openvino" if name.startswith("openvino-") else "ort-cpu"
        export_run(run, path, target=target, allow_float=name.startswith("paper"))


def _quantize_static(reference: Path, out: Path, source: Source, operators: list[str] | None) -> None:
    """ONNX Runtime's own 8 bits as its documentation advises for VNNI: prepared, QDQ, U8S8, a scale each channel."""
    with tempfile.TemporaryDirectory() as folder, whole_file(out, b"") as written:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(reference, prepared)
        quantize_static(
            prepared,
            written,
            Images(reference, source),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _missing(path: Path) -> bool:
    if path.exists():
        return False
    sys.stderr.write(f"{path}\n")
    return True
