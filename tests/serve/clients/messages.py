"""The messages of tritonclient's own stubs: name -> field -> [number, type, repeated], as JSON."""

import json
import sys

from tritonclient.grpc import model_config_pb2, service_pb2


def fields(message):
    yield (
        message.full_name,
        {field.name: [field.number, field.type, bool(field.is_repeated)] for field in message.fields},
    )
    for nested in message.nested_types:
        yield from fields(nested)


files = (service_pb2, model_config_pb2)
found = {
    name: known
    for file in files
    for top in file.DESCRIPTOR.message_types_by_name.values()
    for name, known in fields(top)
}
methods = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
sys.stdout.write(json.dumps({"messages": found, "methods": methods}))
