"""A model as one protobuf."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from .errors import ExportError

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes a single ONNX file can have."""


def serialize(model: ir.Model) -> onnx.ModelProto:
    """The model as one protobuf; raises ExportError where it is too large for one file."""
    proto = ir.serde.serialize_model(model)
    if proto.ByteSize() > PROTOBUF_LIMIT:
        raise ExportError(
            f"the model takes {proto.ByteSize() / 2**30:.1f} GiB; one ONNX file holds at most 2 GiB, and files with "
            "external data are not written by this version. Export fewer bits or a smaller model."
        )
    return proto
