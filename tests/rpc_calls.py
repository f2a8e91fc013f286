"""Calls over gRPC to a server that a test has started."""

import grpc
import numpy as np
import pytest

from fimaq.deploy.serve.rpc.messages import SERVICE, message


def call(server, method, value=None, metadata=(), timeout=30, prefix=None):
    """The response to a request of that method, filled from ``value``."""
    with grpc.insecure_channel(server.said["grpc"]) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message(f"inference.{prefix or method}Response").FromString,
        )
        return ask(value or message(f"inference.{prefix or method}Request")(), metadata=metadata, timeout=timeout)


def logits(response):
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)


def refused(server, request, method="ModelInfer", **options):
    with pytest.raises(grpc.RpcError) as refusal:
        call(server, method, request, **options)
    return refusal.value.code().name, refusal.value.details()
