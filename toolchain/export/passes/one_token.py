"""The grid of a tensor of which only one token is computed."""

from __future__ import annotations

import onnx_ir as ir

from ..traced.ops import Token
from .emit import Emitter


def of_token(emit: Emitter, constant: ir.Value, token: Token | None, part: str) -> ir.Value:
    """What a grid's ``constant`` has for ``token``: a slice, which the runtime takes when it loads the file.

    The whole constant stays in the file. ``token`` None, or a constant that is the same for all tokens: all of it.
    """
    if token is None or constant.shape is None or len(constant.shape) < -token.axis or constant.shape[token.axis] == 1:
        return constant
    ends = [emit.indices([number]) for number in (token.place, token.place + 1, token.axis)]
    return emit.op("Slice", [constant, *ends], part)
