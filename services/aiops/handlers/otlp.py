"""OTLP/gRPC: the three Export methods of opentelemetry-proto, acknowledged when the request is on disk.

They are not Argosy's own contracts, so the interceptor chain does not apply: whoever holds a certificate of the mesh
may send, and is trusted about the organizations that its telemetry names. aiops never traces this.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.aiops.store.telemetry import TelemetryStore
from services.aiops.store.wal import Frame, Signal

# A full disk, in its three forms: the device, the quota, the size limit of the process.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANSWERS: dict[Signal, bytes] = {
    "spans": ExportTraceServiceResponse().SerializeToString(),
    "metrics": ExportMetricsServiceResponse().SerializeToString(),
    "logs": ExportLogsServiceResponse().SerializeToString(),
}
_METHODS: dict[str, Signal] = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "spans",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}


class OtlpReceiver(grpc.GenericRpcHandler):
    """Serves the Export methods on the service's own port."""

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method  # type: ignore[attr-defined]
        signal = _METHODS.get(method)
        if signal is None:
            return None
        return grpc.unary_unary_rpc_method_handler(self._export(signal))  # type: ignore[arg-type]

    def _export(self, signal: Signal) -> Callable[..., Awaitable[bytes]]:
        async def export(body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                await self._store.append(Frame(signal, None, body))
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the body is no OTLP request")
            except OSError as error:
                full = error.errno in FULL_DISK
                code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE
                await context.abort(code, "the telemetry store is full" if full else "the telemetry store is away")
            return ANSWERS[signal]

        return export
