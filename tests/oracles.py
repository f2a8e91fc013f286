"""What several tests compare with."""

import numpy as np
from onnx.reference.op_run import OpRun


class MatMulIntegerToFloat(OpRun):
    """ONNX Runtime's operator by its definition, for onnx.reference: an integer product, its scales, a bias or none."""

    op_domain = "com.microsoft"

    def _run(self, a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias=0):
        product = (a.astype(np.int64) - int(a_zero_point)) @ (b.astype(np.int64) - b_zero_point.astype(np.int64))
        return (product.astype(np.float32) * (a_scale * b_scale) + bias,)
