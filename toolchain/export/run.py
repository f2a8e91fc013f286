"""``export_run`` and ``export_float``: what the command line calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..artifact import Artifact
from ..data import ImageSet, calibration_sample, open_dataset
from ..errors import InputError, UsageError
from ..external import stored_bytes
from ..files import check_free, whole_file
from ..image_input import InputKind
from ..model import load_float
from ..preprocess import Preprocessing
from ..run_folder import load_run
from .build import build_float, build_quantized, calibrated, with_raw_image
from .checks.check import (
    FLOAT_SNR_DB,
    HALF_SNR_DB,
    SIXTEEN_BITS_SNR_DB,
    check_float_parity,
    check_parity,
    check_raw_image,
    check_stored,
    check_structure,
    check_unrounded,
    count_kernels,
)
from .checks.parity import Agreement
from .metadata import Description, FloatType
from .model_files import whole_model
from .targets import find_target
from .targets.lint import check_rules

FLOAT_IMAGES = 8
"""Random images suffice where nothing is rounded to few bits."""

RUN_GRIDS, FLOATS = "run-grids.onnx", "floats.onnx"
"""What else lies beside a file while it is checked: it without a target's own grids, and with normalised images."""

CALIBRATED_IMAGES = 32
"""Images from which a target takes ranges that the run does not have."""


def export_run(
    run: Path,
    out: Path,
    *,
    target: str = "ort-cpu",
    opset: int | None = None,
    force: bool = False,
    images: int = 64,
    data: str | None = None,
    allow_float: bool = False,
    image: InputKind = "float",
) -> dict[str, Any]:
    """Write a run folder as a checked ONNX file; return the JSON object of ``fimaq-tool export``.

    Parity is measured on ``images`` of the run's calibration images, or of ``data`` where that is given. A target for
    integer kernels takes a layer that runs on a float one only with ``allow_float``. With ``image="uint8"`` the file
    normalises images itself.
    Raises InputError for a run, output or data that cannot be used, ExportError where the file would not hold what it
    promises (then nothing is written), UsageError for an unknown target or opset.
    """
    chosen = find_target(target)
    if image == "uint8" and chosen.rules:
        raise UsageError(
            f"target {target} takes normalised images: what is documented of its runtime holds for those only. "
            "Leave out --input uint8."
        )
    check_free(out, force)
    for kind in chosen.companion_kinds:
        check_free(_beside(out, kind), force)
    loaded = load_run(run)
    manifest = loaded.manifest
    shown = parity_images(manifest, images, data)
    pixels = np.stack([loaded.preprocessing.pixels(shown.load(index)) for index in range(len(shown))])
    batch = _normalized(pixels, loaded.preprocessing)
    described = manifest["model"]
    description = Description(
        model=described["name"],
        weights_sha256=described["weights_sha256"],
        target=target,
        preprocessing=loaded.preprocessing,
        classes=loaded.classes,
        recipe=manifest["recipe"],
        layers=manifest["layers"],
        run_sha256=manifest["sha256"],
    )
    size = tuple(described["input_size"])
    quantized = loaded.model
    graph = build_quantized(quantized.model, quantized.layers, (size[0], size[1], size[2]), chosen, opset, description)
    tensors, bits = Artifact.load(run).tensors, operand_bits(manifest["layers"])
    with ExitStack() as stack:
        files = stack.enter_context(whole_model(out))
        if passes := chosen.calibrated(batch[:CALIBRATED_IMAGES]):
            check_unrounded(files, files.save(graph, RUN_GRIDS), quantized, batch)
            graph = calibrated(graph, passes, description)
        floats = written = files.save(graph, FLOATS if image == "uint8" else None)
        if image == "uint8":
            written = files.save(with_raw_image(graph, description))
        check_structure(written)
        proto = onnx.load(written)
        check_rules(proto, target, chosen.rules)
        check_stored(proto, tensors, bits)
        companions = chosen.companions(proto)
        del proto
        check_unrounded(files, floats, quantized, batch, SIXTEEN_BITS_SNR_DB if passes else FLOAT_SNR_DB)
        agreement = check_parity(floats, quantized, batch)
        if image == "uint8":
            check_raw_image(written, floats, pixels, batch)
        layers = count_kernels(written, allow_float or not chosen.integer)
        size_in_bytes = stored_bytes(written, graph.metadata_props)
        for kind, beside in companions.items():
            stack.enter_context(whole_file(_beside(out, kind), beside))
    result = _result(out, size_in_bytes, target, graph.opset_imports[""], layers, _parity(agreement, codes_equal=True))
    return result | {kind: str(_beside(out, kind)) for kind in companions}


def export_float(
    model: str,
    out: Path,
    *,
    weights: Path | None = None,
    opset: int | None = None,
    force: bool = False,
    image: InputKind = "float",
    dtype: FloatType = "float32",
) -> dict[str, Any]:
    """Write a float model as ONNX with the metadata a quantized one has; return the JSON object of the command.

    Raises as ``export_run`` does. Parity is measured on random images. ``image`` is as there; with ``dtype="float16"``
    the file computes in half precision (on a CPU, where it is checked, ONNX Runtime does so by rounding to it).
    """
    check_free(out, force)
    loaded = load_float(model, weights)
    description = Description(
        model=loaded.name,
        weights_sha256=loaded.weights_sha256,
        target="float",
        preprocessing=loaded.preprocessing,
        classes=loaded.classes,
        dtype=dtype,
    )
    graph = build_float(loaded.module, loaded.input_size, opset, description, dtype)
    channels, height, width = loaded.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (FLOAT_IMAGES, height, width, channels), dtype=np.uint8)
    batch = _normalized(pixels, loaded.preprocessing)
    with whole_model(out) as files:
        floats = written = files.save(graph, FLOATS if image == "uint8" else None)
        if image == "uint8":
            written = files.save(with_raw_image(graph, description))
        check_structure(written)
        agreement = check_float_parity(
            floats, loaded.module, batch, HALF_SNR_DB if dtype == "float16" else FLOAT_SNR_DB
        )
        if image == "uint8":
            check_raw_image(written, floats, pixels, batch)
        size_in_bytes = stored_bytes(written, graph.metadata_props)
    layers = {"integer": 0, "float": 0}
    return _result(out, size_in_bytes, "float", graph.opset_imports[""], layers, _parity(agreement, codes_equal=None))


def _beside(out: Path, kind: str) -> Path:
    return out.with_suffix(f".{kind}.json")


def operand_bits(layers: list[Mapping[str, Any]]) -> dict[str, int]:
    """Bits of every quantized tensor, by the name the run folder gives it."""
    bits: dict[str, int] = {}
    for row in layers:
        if row["op"] == "matmul":
            bits |= {f"{row['name']}.{side}": row["activation_bits"] for side in ("a", "b")}
        else:
            bits |= {f"{row['name']}.weight": row["weight_bits"], f"{row['name']}.input": row["activation_bits"]}
    return bits


def parity_images(manifest: Mapping[str, Any], count: int, data: str | None) -> ImageSet:
    """The first ``count`` calibration images, or as many of ``data`` where those are not there.

    Raises InputError where there are none; then ``data`` would help.
    """
    calibration = manifest["calibration"]
    source = data or calibration["source"]
    try:
        images = open_dataset(source, require_labels=False)
    except InputError as error:
        if data is not None:
            raise
        raise InputError(
            f"the run's calibration images are no longer at {source} ({error}). "
            "Give the images to check parity on: --data DIR."
        ) from error
    places = {name: index for index, name in enumerate(images.sample_ids)}
    wanted = calibration["sample_ids"][:count]
    if all(name in places for name in wanted):
        return images.subset(places[name] for name in wanted)
    return images.subset(calibration_sample(images, min(count, len(images)), seed=0))


def _normalized(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([preprocessing.normalize(image) for image in pixels])


def _parity(agreement: Agreement, codes_equal: bool | None) -> dict[str, Any]:
    return {
        "images": len(agreement.agrees),
        "top1_agreement": agreement.top1_agreement,
        "noise_floor": agreement.noise_floor,
        "snr_db": agreement.snr_db,
        "noise_floor_snr_db": agreement.floor_snr_db,
        "codes_equal": codes_equal,
    }


def _result(
    out: Path, size_in_bytes: int, target: str, opset: int, layers: dict[str, int], parity: dict[str, Any]
) -> dict[str, Any]:
    return {
        "onnx": str(out),
        "target": target,
        "opset": opset,
        "bytes": size_in_bytes,
        "layers": layers,
        "parity": parity,
    }
