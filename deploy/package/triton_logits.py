"""Whether Triton computes what was evaluated: its ONNX Runtime backend cannot set the options our sessions have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fimaq.toolchain.errors import InputError
from fimaq.toolchain.runtime import onnxruntime_module

from .model import Model

ROUNDING = 1e-4
"""Relative to the largest logit. Measured: equal bit for bit, or off by percents where pairs of Q/DQ are merged."""


def same_logits(model: Model) -> npt.NDArray[np.floating[Any]]:
    """The logits of ``model.probe()``, which a session with default options gives as well.

    Raises InputError where it does not; ``runtime.session_config`` says what our options prevent, some of it on some
    processors only.
    """
    images, ours = model.probe(), model.predictor(model.probe())
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {model.predictor.input_name: images})
    difference, largest = np.abs(theirs - ours).max(), np.abs(ours).max()
    if not difference <= ROUNDING * largest:
        raise InputError(
            f"{model.path} gives other logits with ONNX Runtime's default session options, the only ones Triton has: "
            f"off by {difference:.2g} where the largest is {largest:.2g}; wanted the logits that were evaluated. "
            "Export the run with --target ort-cpu, or package for kserve or docker."
        )
    return ours
