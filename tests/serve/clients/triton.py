"""What tritonclient makes of a server: ``python triton.py http|grpc HOST:PORT IMAGES.npy`` prints one JSON object."""

import importlib
import json
import sys

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

protocol, address, images_file = sys.argv[1:]
module = importlib.import_module(f"tritonclient.{protocol}")
client = module.InferenceServerClient(address)
as_json = {} if protocol == "http" else {"as_json": True}
images = np.load(images_file)


def infer(binary=True, **options):
    tensor = module.InferInput("image", list(images.shape), np_to_triton_dtype(images.dtype))
    tensor.set_data_from_numpy(images, **({"binary_data": binary} if protocol == "http" else {}))
    return client.infer("toy", [tensor], **options)


def refusal(call):
    try:
        call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    return None


found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model_ready": client.is_model_ready("toy"),
    "version_ready": client.is_model_ready("toy", "1"),
    "other_ready": client.is_model_ready("other"),
    "server": client.get_server_metadata(**as_json),
    "model": client.get_model_metadata("toy", **as_json),
    "config": client.get_model_config("toy", **as_json),
    "index": client.get_model_repository_index(**as_json),
    "logits": infer().as_numpy("logits").tolist(),
    "version": infer(model_version="1").get_response(**as_json),
    "id": infer(request_id="mine").get_response(**as_json),
    "classes": infer(outputs=[module.InferRequestedOutput("logits", class_count=2)]).as_numpy("logits").tolist(),
    "other": refusal(lambda: client.get_model_metadata("other")),
    "load": refusal(lambda: client.load_model("toy")),
    "unload": refusal(lambda: client.unload_model("toy")),
}
if protocol == "http":
    asked = module.InferRequestedOutput("logits", binary_data=False)
    found["json"] = infer(binary=False, outputs=[asked]).as_numpy("logits").tolist()
    for name in ("gzip", "deflate"):
        compressed = infer(request_compression_algorithm=name, response_compression_algorithm=name)
        found[name] = compressed.as_numpy("logits").tolist()
found["statistics"] = client.get_inference_statistics("toy", **as_json)
sys.stdout.write(json.dumps(found, default=lambda value: value.decode()))
