"""An ONNX file behind KServe's Python server: ``python kserve_server.py MODEL.onnx PORT``."""

from __future__ import annotations

import logging
import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Classifier(Model):
    """One session, one thread."""

    def __init__(self, path: str) -> None:
        super().__init__("model")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: object = None
    ) -> InferResponse:
        """The logits of a binary tensor, in binary."""
        logits = self.session.run(None, {"image": payload.inputs[0].as_numpy()})[0]
        output = InferOutput("logits", list(logits.shape), "FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(payload.id or "", "model", [output])


if __name__ == "__main__":
    logging.disable(logging.INFO)
    ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1, access_log_format=None).start(
        [Classifier(sys.argv[1])]
    )
