"""The gRPC server of a service: mutual TLS, bound methods, health, reflection, channelz, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from libs.common.pki import Certificates
from libs.common.rpc.bind import bind
from libs.common.rpc.method import Host

# Parts of uploads are at most 8 MiB; the rest is room for the message around them.
MAX_MESSAGE_BYTES = 9 * 1024 * 1024
# Clients ping idle connections every 30 s; a server that did not expect that would close them (too_many_pings).
KEEPALIVE_MILLIS = 30_000
# After health says NOT_SERVING, clients need a moment to look elsewhere before calls are refused.
_NOTICE_SECONDS = 0.5

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MILLIS // 2),
    # On a busy machine pings bunch up; peers of the mesh are known, so that is no reason to hang up on them.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two servers on one port would share its calls without a word.
    ("grpc.so_reuseport", 0),
)

CHANNELZ_NAME = "grpc.channelz.v1.Channelz"

_log = logging.getLogger(__name__)


class _Methods(grpc.GenericRpcHandler):
    """Finds a handler by its path."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = dict(handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)  # type: ignore[attr-defined]


class Server:
    """One port of a service.

    Args:
        host: what the methods share.
        certificates: this service's, followed without a restart.
        listen: `host:port`; port 0 takes a free one.
    """

    def __init__(self, host: Host, certificates: Certificates, listen: str) -> None:
        self._host = host
        self._listen = listen
        self._services: list[str] = []
        self._certificates = certificates
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self.port = 0

    @property
    def raw(self) -> grpc.aio.Server:
        """The server of grpc.aio, for servicers that are not Argosy's own protos (OTLP)."""
        return self._server

    def mount(self, services: Sequence[ServiceDescriptor], sources: Sequence[object]) -> None:
        """Binds proto services to their handlers. Raises BindingError when they do not fit."""
        self._server.add_generic_rpc_handlers((_Methods(bind(services, sources, self._host)),))
        self._services += [service.full_name for service in services]

    async def start(self) -> None:
        """Listens. Health answers NOT_SERVING until `set_ready`."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        channelz.add_channelz_servicer(self._server)
        names = (*self._services, health.SERVICE_NAME, CHANNELZ_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = self._server.add_secure_port(self._listen, self._certificates.server_credentials())
        await self.set_ready(False)
        await self._server.start()
        _log.info("serving %s on port %d", ", ".join(self._services), self.port)

    async def set_ready(self, ready: bool) -> None:
        """What health says, for the whole server and for each of its services."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def drain(self, grace: float) -> None:
        """Says NOT_SERVING, ends long calls with DRAINING so that their clients go elsewhere; short ones finish.

        Args:
            grace: seconds that calls in flight get.
        """
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(min(_NOTICE_SECONDS, grace))
        self._host.load.draining = True
        long = list(self._host.load.long)
        for task in long:
            task.cancel()
        if long:
            await asyncio.wait(long, timeout=grace)
        await self._server.stop(grace)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()
