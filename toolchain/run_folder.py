"""Between a quantized model in memory and its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from .artifact import Artifact
from .errors import InputError
from .families import QuantModel, wrap
from .model import rebuild
from .nn import QuantConv2d, QuantLayer, QuantLinear, QuantMatMul, quantizer_slots
from .preprocess import Preprocessing
from .quantizers import CodedWeight, Quantizer, UniformQuantizer
from .spec import QuantSpec

TENSOR_NAMES = {"a_quantizer": "a", "b_quantizer": "b", "input_quantizer": "input", "weight_quantizer": "weight"}


@final
@dataclass(frozen=True)
class LoadedRun:
    """A quantized model as stored: its weights exist only as codes."""

    model: QuantModel
    preprocessing: Preprocessing
    classes: dict[str, Any]
    manifest: Mapping[str, Any]


def load_run(path: Path) -> LoadedRun:
    """Rebuild the fake-quantized torch model of a run folder, in evaluation mode.

    Raises InputError for a folder that is missing, corrupt, newer than this version or does not fit its model.
    """
    artifact = Artifact.load(path)
    manifest = artifact.manifest
    description = manifest["model"]
    size = description["input_size"]
    model = wrap(rebuild(description), (size[0], size[1], size[2]))
    rows = {row["name"]: row for row in manifest["layers"]}
    if set(rows) != set(model.layers):
        raise InputError(
            f"run folder {path} holds layers that {description['timm_name']!r} of the installed timm does not have, or "
            "the other way round. Install the timm version named in its manifest, or quantize again."
        )
    restore_quantizers(model.layers, rows, artifact.tensors)
    _load_floats(model, artifact.tensors, path)
    return LoadedRun(model.eval(), Preprocessing.from_json(manifest["preprocessing"]), manifest["classes"], manifest)


def run_tensors(model: QuantModel) -> dict[str, np.ndarray]:
    """The tensors of the run folder, as ``docs/architecture.md`` lists them."""
    out = {f"model.{name}": value for name, value in _float_tensors(model).items()}
    arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in out.items()}
    return arrays | quantizer_tensors(model.layers)


def quantizer_tensors(layers: Mapping[str, QuantLayer]) -> dict[str, np.ndarray]:
    """Codes, scales and zero points of ``layers``, whose weights must be codes already."""
    out: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for slot in quantizer_slots(layer):
            quantizer, prefix = getattr(layer, slot), f"{name}.{TENSOR_NAMES[slot]}"
            if isinstance(quantizer, CodedWeight):
                out[f"{prefix}.codes"] = quantizer.codes
            out[f"{prefix}.scale"] = _stored(quantizer, quantizer.scale)
            out[f"{prefix}.zero_point"] = _stored(quantizer, quantizer.zero_point).to(torch.uint8)
    return {name: value.detach().cpu().contiguous().numpy() for name, value in out.items()}


def restore_quantizers(
    layers: Mapping[str, QuantLayer], rows: Mapping[str, Mapping[str, Any]], arrays: Mapping[str, np.ndarray]
) -> None:
    """Put stored quantizers into ``layers``; ``rows`` are their manifest rows by name (see ``layer_rows``)."""
    for name, layer in layers.items():
        for slot in quantizer_slots(layer):
            _restore(layer, slot, f"{name}.{TENSOR_NAMES[slot]}", rows[name], arrays)


def layer_rows(model: QuantModel) -> list[dict[str, Any]]:
    """For each layer what it is, and the bits and granularity of everything it reads."""
    return [layer_row(name, layer) for name, layer in model.layers.items()]


def layer_row(name: str, layer: QuantLayer) -> dict[str, Any]:
    """One layer's row."""
    if isinstance(layer, QuantMatMul):
        spec = _spec(layer.a_quantizer)
        return {
            "name": name,
            "op": "matmul",
            "weight_bits": None,
            "activation_bits": spec.bits,
            "weight_granularity": None,
            "granularity": spec.granularity,
        }
    weight, activation = _spec(layer.weight_quantizer), _spec(layer.input_quantizer)
    return {
        "name": name,
        "op": "conv2d" if isinstance(layer, QuantConv2d) else "linear",
        "weight_bits": weight.bits,
        "activation_bits": activation.bits,
        "weight_granularity": weight.granularity,
        "granularity": activation.granularity,
    }


def _spec(quantizer: nn.Module) -> QuantSpec:
    assert isinstance(quantizer, Quantizer)
    return quantizer.spec


def _stored(quantizer: Quantizer, value: Tensor) -> Tensor:
    """Per-channel weight grids are stored flat, ``[o]``; everything else as it broadcasts."""
    return value.flatten() if isinstance(quantizer, CodedWeight) else value


def _restore(
    layer: QuantLayer, slot: str, prefix: str, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    try:
        scale, zero = torch.tensor(arrays[f"{prefix}.scale"]), torch.tensor(arrays[f"{prefix}.zero_point"]).float()
        codes = torch.tensor(arrays[f"{prefix}.codes"]) if slot == "weight_quantizer" else None
    except KeyError as error:
        raise InputError(f"the run folder holds no tensor {error}. It is incomplete: quantize again.") from error
    if codes is not None:
        assert not isinstance(layer, QuantMatMul) and layer.weight is not None
        wanted = layer.weight.shape
        if codes.shape != wanted or scale.shape != wanted[:1] or zero.shape != wanted[:1]:
            raise InputError(
                f"the run folder's {prefix} has codes {list(codes.shape)} and scale {list(scale.shape)}, the installed "
                f"timm's weight is {list(wanted)}. Install the timm version it was made with, or quantize again."
            )
        ones = [1] * (codes.ndim - 1)
        spec = QuantSpec(row["weight_bits"], row["weight_granularity"])
        setattr(layer, slot, CodedWeight(spec, codes, scale.view(-1, *ones), zero.view(-1, *ones)))
    else:
        setattr(layer, slot, UniformQuantizer(QuantSpec(row["activation_bits"], row["granularity"]), scale, zero))


def _float_tensors(model: QuantModel) -> dict[str, Tensor]:
    """Parameters and buffers that are not weights of quantized layers, by timm's own names (wrappers left out)."""
    quantized = {id(value) for layer in model.layers.values() for value in _weight_and_quantizers(layer)}
    return {
        _timm_name(name): value
        for name, value in model.model.state_dict(keep_vars=True).items()
        if id(value) not in quantized
    }


def _weight_and_quantizers(layer: QuantLayer) -> list[Tensor]:
    values = [v for slot in quantizer_slots(layer) for v in getattr(layer, slot).state_dict(keep_vars=True).values()]
    return values if isinstance(layer, QuantMatMul) or layer.weight is None else [*values, layer.weight]


def _timm_name(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != "wrapped")


def _load_floats(model: QuantModel, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    stored = {
        name.removeprefix("model."): torch.tensor(value) for name, value in arrays.items() if name.startswith("model.")
    }
    for name, layer in model.layers.items():
        if isinstance(layer, QuantLinear | QuantConv2d):
            layer.weight = None
            if layer.bias is None and f"{name}.bias" in stored:
                layer.bias = nn.Parameter(torch.empty_like(stored[f"{name}.bias"]))
    wanted = _float_tensors(model)
    odd = [name for name in wanted.keys() & stored.keys() if wanted[name].shape != stored[name].shape]
    odd += wanted.keys() ^ stored.keys()
    odd += arrays.keys() - quantizer_tensors(model.layers).keys() - {f"model.{name}" for name in stored}
    if odd:
        raise InputError(
            f"run folder {path} does not fit its model: {', '.join(sorted(odd)[:5])}. "
            "Install the timm version it was made with."
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(stored[name])
            value.requires_grad_(False)
