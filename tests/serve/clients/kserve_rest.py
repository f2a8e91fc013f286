"""What KServe's client makes of a server: ``python kserve_rest.py URL IMAGES.npy`` prints one JSON object."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

url, images_file = sys.argv[1:]
images = np.load(images_file)


async def ask():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(binary):
        tensor = InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images, binary_data=binary)
        outputs = [RequestedOutput("logits", parameters={"binary_data": True})] if binary else None
        request = InferRequest("toy", [tensor], request_id="mine", request_outputs=outputs)
        return await client.infer(url, request, model_name="toy")

    answers = {name: await infer(binary) for name, binary in (("json", False), ("binary", True))}
    return {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, "toy"),
        "id": answers["json"].id,
        **{name: answer.outputs[0].as_numpy().tolist() for name, answer in answers.items()},
    }


sys.stdout.write(json.dumps(asyncio.run(ask())))
