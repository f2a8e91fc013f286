"""A model as an ONNX graph in which each quantized layer is one ``fimaq::`` operator."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from ...nn import InterceptAttention
from ..errors import ExportError
from .symbolic import symbolic_layer

FOLD_LIMIT = 1 << 28
"""Bytes up to which a constant subgraph is evaluated: bias tables and masks of any window, never whole weights."""


def trace(model: nn.Module, layers: Mapping[str, nn.Module], input_size: tuple[int, int, int], opset: int) -> ir.Model:
    """Trace a quantized model whose ``layers`` (name -> quantized layer, somewhere inside it) become operators.

    The model is left as it was, also on error. Raises ExportError where a layer is not in its final state or the
    model cannot be traced.
    """
    with symbolic_layers(model, layers):
        return _export(model, input_size, opset)


def trace_float(model: nn.Module, input_size: tuple[int, int, int], opset: int) -> ir.Model:
    """Trace a float model, its attention as two products with a softmax between (as in the quantized graph)."""
    return _export(_Unfused(model), input_size, opset)


@contextlib.contextmanager
def symbolic_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put symbolic stand-ins in the place of ``layers`` inside ``model`` while the context lasts."""
    names = {id(layer): name for name, layer in layers.items()}
    places = [
        (parent, attribute, child)
        for parent in list(model.modules())
        for attribute, child in parent.named_children()
        if id(child) in names
    ]
    missing = set(names.values()) - {names[id(child)] for _, _, child in places}
    if missing:
        raise ExportError(f"layers {', '.join(sorted(missing))} are not inside {type(model).__name__}.")
    stand_ins = [symbolic_layer(names[id(child)], child) for _, _, child in places]
    try:
        for (parent, attribute, _), stand_in in zip(places, stand_ins, strict=True):
            setattr(parent, attribute, stand_in)
        yield
    finally:
        for parent, attribute, child in places:
            setattr(parent, attribute, child)


class _Unfused(nn.Module):
    """A model whose calls of fused attention are spelt out, query scaled first as timm does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits of ``image``."""
        with InterceptAttention(_attend):
            result: Tensor = self.model(image)
        return result


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(query key^T * scale + mask) value``."""
    if dropout_p or is_causal or enable_gqa:
        raise ExportError(f"attention with {dropout_p=}, {is_causal=}, {enable_gqa=}: wanted plain attention.")
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if masked else scores + attn_mask
    return scores.softmax(dim=-1) @ value


def _export(model: nn.Module, input_size: tuple[int, int, int], opset: int) -> ir.Model:
    """``torch.onnx.export`` with a dynamic batch, silent, constants folded."""
    example = torch.zeros(2, *input_size)
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(
            f"{type(model).__name__} could not be traced: {str(error).strip().splitlines()[0]} "
            "Run again with --debug for the whole message."
        ) from error
    if program is None:
        raise ExportError(f"{type(model).__name__} could not be traced: torch.onnx.export returned nothing.")
    traced: ir.Model = program.model
    with _silence():
        optimizer.fold_constants(traced, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
        optimizer.optimize(traced, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    return traced


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what torch.onnx and onnxscript print, log and warn to themselves; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
