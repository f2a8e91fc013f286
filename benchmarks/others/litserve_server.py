"""An ONNX file behind LitServe, an uploaded tensor in and bytes out: ``python litserve_server.py MODEL.onnx PORT``."""

import sys

import litserve
import numpy as np
import onnxruntime
from fastapi import Request, Response


class Classifier(litserve.LitAPI):
    """One session, one thread."""

    def setup(self, device: str) -> None:
        """Open the session in the worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.image = self.session.get_inputs()[0]
        self.dtype = np.uint8 if self.image.type == "tensor(uint8)" else np.float32

    def decode_request(self, request: Request) -> np.ndarray:
        """The tensor in a form's field."""
        content = request["image"].file.read()
        return np.frombuffer(content, dtype=self.dtype).reshape(-1, *self.image.shape[1:])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The logits."""
        logits: np.ndarray = self.session.run(None, {self.image.name: images})[0]
        return logits

    def encode_response(self, logits: np.ndarray) -> Response:
        """The logits as they are in memory."""
        return Response(content=logits.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    litserve.LitServer(Classifier(), accelerator="cpu").run(
        port=int(sys.argv[2]), log_level="error", generate_client_file=False
    )
