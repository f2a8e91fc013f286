"""What a file must pass before it is written under its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from ...families import QuantModel
from ...nn import float_layers
from ...runtime import open_session, run_session
from ..errors import ExportError
from ..model_files import ModelFiles
from .kernels import layer_kernels
from .parity import SIGNIFICANCE, Agreement, Predict, compare, snr_db, torch_predictor
from .stored import stored_differences
from .unrounded import without_rounding

FLOAT_SNR_DB = 80.0
"""A graph that rounds nothing computes what torch computes up to the order of sums; above 100 dB is usual."""

SIXTEEN_BITS_SNR_DB = 40.0
"""Constants of 16 bits leave 55 to 65 dB; a mask of -100 among attention's biases costs most."""

HALF_SNR_DB = 40.0
"""Half precision rounds every number to 11 bits (71 dB each); sums over a network's layers leave about 50 dB."""

UNROUNDED = "unrounded.onnx"
"""Lies beside a file while it is checked: the file without rounding."""

UNROUNDED_IMAGES = 4
"""As many suffice where nothing is rounded."""


def check_structure(path: Path) -> None:
    """onnx.checker in full and strict shape inference; raises ExportError."""
    try:
        onnx.checker.check_model(path, full_check=True)
        onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX ({str(error).strip().splitlines()[0]}). Nothing was written. "
            "This is a fault of the exporter: please report it with the model's name."
        ) from error


def check_stored(model: onnx.ModelProto, tensors: Mapping[str, np.ndarray], bits: Mapping[str, int]) -> None:
    """Every code, scale and zero point of the run must be in the file; raises ExportError."""
    differences = list(stored_differences(model, tensors, bits))
    if differences:
        raise ExportError(
            f"the file would not hold {', '.join(differences[:5])} of the run exactly. Nothing was written. "
            "This is a fault of the exporter: please report it with the model's name."
        )


def check_unrounded(
    files: ModelFiles, path: Path, quantized: QuantModel, images: np.ndarray, wanted: float = FLOAT_SNR_DB
) -> None:
    """Without activation rounding the file must compute what the torch model computes so; raises ExportError.

    ``wanted`` is in decibels.
    """
    continuous = without_rounding(onnx.load(path, load_external_data=False), list(quantized.layers), path.parent)
    written = files.write(continuous, UNROUNDED)
    with float_layers(quantized.layers.values(), keep_weights=True):
        reference = torch_predictor(quantized, torch.float32)(images[:UNROUNDED_IMAGES])
    found = _runtime(written, False)(images[:UNROUNDED_IMAGES])
    if (snr := snr_db(reference, found)) < wanted:
        raise ExportError(
            f"apart from the rounding of activations the file does not compute what the torch model computes (signal "
            f"to noise {snr:.0f} dB; wanted {wanted:.0f} dB or more). Nothing was written. "
            "This is a fault of the exporter: please report it with the model's name."
        )


def check_parity(path: Path, model: nn.Module, images: np.ndarray) -> Agreement:
    """The file must agree with ``model`` as the model agrees with itself, optimised and not; raises ExportError.

    Returns how it compares when optimised.
    """
    found = compare(model, {"optimised": _runtime(path, True), "not optimised": _runtime(path, False)}, images)
    for level, agreement in found.items():
        if agreement.p_value < SIGNIFICANCE:
            raise ExportError(
                f"in ONNX Runtime ({level}) the file predicts the torch model's class for "
                f"{agreement.top1_agreement:.1f}% of {len(images)} images; wanted {agreement.noise_floor:.1f}%, as the "
                f"torch model agrees with itself in float64 (p = {agreement.p_value:.1g}). Nothing was written. "
                "Try the other --target, or report this with the model's name."
            )
    return found["optimised"]


def check_raw_image(path: Path, floats: Path, pixels: np.ndarray, images: np.ndarray) -> None:
    """A file that takes ``pixels`` must give the same logits, to the last bit, as the one that takes ``images``.

    Optimised and not; raises ExportError.
    """
    for optimize in (True, False):
        wanted, found = _runtime(floats, optimize)(images), _runtime(path, optimize)(pixels)
        if not np.array_equal(wanted, found):
            raise ExportError(
                f"with uint8 images the file's logits differ by up to {np.abs(wanted - found).max():.2g} from those "
                "with normalised ones; wanted the same. Nothing was written. Leave out --input uint8, or report this "
                "with the model's name."
            )


def check_float_parity(path: Path, model: nn.Module, images: np.ndarray, wanted: float = FLOAT_SNR_DB) -> Agreement:
    """A float file's logits must be the model's up to rounding, ``wanted`` decibels of it; raises ExportError."""
    agreement = compare(model, {"optimised": _runtime(path, True)}, images)["optimised"]
    if agreement.snr_db < wanted:
        raise ExportError(
            f"in ONNX Runtime the logits differ from the torch model's (signal to noise {agreement.snr_db:.0f} dB; "
            f"wanted {wanted:.0f} dB or more). Nothing was written. "
            + ("Leave out --dtype float16." if wanted == HALF_SNR_DB else "Report this with the model's name.")
        )
    return agreement


def count_kernels(path: Path, allow_float: bool) -> dict[str, int]:
    """How many layers run on integer and on float kernels.

    Raises ExportError where a layer cannot be found again, or runs on floats and ``allow_float`` is False.
    """
    kernels = layer_kernels(path)
    lost = [name for name, kernel in kernels.items() if kernel == "unknown"]
    if lost:
        raise ExportError(f"layers {', '.join(lost[:5])} are not found in the optimised graph. Nothing was written.")
    slow = [name for name, kernel in kernels.items() if kernel == "float"]
    if slow and not allow_float:
        raise ExportError(
            f"{len(slow)} of {len(kernels)} quantized layers would run on float kernels of ONNX Runtime: "
            f"{', '.join(slow[:3])}{', ...' if len(slow) > 3 else ''}; wanted integer ones. Nothing was written. No "
            "integer kernel takes a scale for each token of the values (the paper's recipes), or a convolution whose "
            "patches overlap or do not fill the image. Give --allow-float to write the file so, or quantize with "
            "--recipe deploy-w4a4."
        )
    counts = Counter(kernels.values())
    return {"integer": counts["integer"], "float": counts["float"]}


def _runtime(model: Path, optimize: bool) -> Predict:
    session = open_session(model, optimize=optimize)
    batch = session.get_inputs()[0].shape[0]

    def predict(images: np.ndarray) -> np.ndarray:
        size = batch if isinstance(batch, int) else len(images)
        parts = (images[start : start + size] for start in range(0, len(images), size))
        return np.concatenate([run_session(session, {"image": part}, "the exported file")[0] for part in parts])

    return predict
