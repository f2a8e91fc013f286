"""An ONNX file behind MLServer, over HTTP with JSON tensors only: ``python mlserver_server.py MODEL.onnx PORT``."""

import asyncio
import socket
import sys

import numpy as np
import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class Classifier(MLModel):
    """One session, one thread, in the server's process."""

    async def load(self) -> bool:
        """Open the session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.dtype = np.uint8 if self.session.get_inputs()[0].type == "tensor(uint8)" else np.float32
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The logits of a tensor."""
        images = np.asarray(NumpyCodec.decode_input(payload.inputs[0]), dtype=self.dtype)
        logits = self.session.run(None, {"image": images})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])


def free_port() -> int:
    """For gRPC, which it always serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


if __name__ == "__main__":
    settings = Settings(
        http_port=int(sys.argv[2]), grpc_port=free_port(), metrics_endpoint=None, parallel_workers=0, debug=False
    )
    model = ModelSettings(name="model", implementation=Classifier, parameters=ModelParameters())
    asyncio.run(MLServer(settings).start([model]))
