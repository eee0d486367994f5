"""Calls to the services behind the routes."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor


class StubSource(Protocol):
    """Where stubs come from: `libs.common.rpc.client.Channels`, or a plain channel in a test."""

    def stub(self, stub_class: type, service: str) -> Any:
        """A stub of this class over the channel to a service."""
        ...


class Backends:
    """Finds the callable behind an RPC; each stub is built once.

    Args:
        channels: mutual TLS, deadlines and retries are theirs.
    """

    def __init__(self, channels: StubSource) -> None:
        self._channels = channels
        self._callables: dict[tuple[str, str], Any] = {}

    def callable(self, method: MethodDescriptor, service: str) -> Any:
        """What calls `method` of `service`: takes a request, `metadata` and `timeout` in seconds."""
        key = (service, method.full_name)
        found = self._callables.get(key)
        if found is None:
            stub = self._channels.stub(_stub_class(method), service)
            found = self._callables[key] = getattr(stub, method.name)
        return found


def _stub_class(method: MethodDescriptor) -> type:
    service = method.containing_service
    assert service is not None
    module = service.file.name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc"
    return getattr(importlib.import_module(module), f"{service.name}Stub")
