"""The protocol's messages, made from its compiled description.

``inference.binpb`` is compiled from ``inference.proto`` beside it::

    python -m grpc_tools.protoc -I. --descriptor_set_out=inference.binpb inference.proto

The messages live in a pool of their own: generated modules would clash with those of any client library, since both
describe messages of the same names, and would tie this package to one version of protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

COMPILED = Path(__file__).with_name("inference.binpb")
SERVICE = "inference.GRPCInferenceService"


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def service() -> ServiceDescriptor:
    """The methods, with their requests and responses."""
    return _POOL.FindServiceByName(SERVICE)


def message(name: str) -> type[Any]:
    """The class of a message; its fields are known when it runs only."""
    made: type[Any] = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))
    return made


def filled(name: str, value: Mapping[str, Any]) -> Message:
    """A message from what its JSON would be."""
    return json_format.ParseDict(dict(value), message(name)())


def parameters(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a map of InferParameter or ModelRepositoryParameter; a parameter without a value is None."""
    return {
        name: getattr(value, chosen) if (chosen := value.WhichOneof("parameter_choice")) else None
        for name, value in mapping.items()
    }
