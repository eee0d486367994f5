"""The way out for telemetry: OTLP over gRPC with mutual TLS, in a thread, never in the way of a call.

The official exporters retry inside `export` and keep the certificates that they were built with; ours gives each batch
one try, drops and counts what a receiver that is away cannot take, and reads rotated certificates anew.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import grpc
from google.protobuf.message import Message

from libs.common.pki import server_name

Signal = Literal["traces", "metrics", "logs"]

_METHODS: dict[Signal, str] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
# One batch has this long; a receiver that needs longer would only make the queue behind it overflow.
_TIMEOUT_SECONDS = 5.0


class OtlpSender:
    """Sends encoded OTLP requests to one receiver and counts what it could not send.

    Args:
        endpoint: `host:port` of the receiver's OTLP/gRPC door.
        pki_dir: Folder with `ca.crt`, `<identity>.crt` and `<identity>.key`; None for a receiver without TLS (tests).
        identity: Whose certificate to show.
    """

    def __init__(self, endpoint: str, pki_dir: Path | None, identity: str) -> None:
        self._endpoint = endpoint
        self._pki_dir = pki_dir
        self._identity = identity
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._built_for = 0.0
        self.dropped: dict[Signal, int] = {"traces": 0, "metrics": 0, "logs": 0}
        self.sent: dict[Signal, int] = {"traces": 0, "metrics": 0, "logs": 0}

    def send(self, signal: Signal, request: Message, items: int) -> bool:
        """Sends one request; False when it was dropped. `items` is how many spans, points or records it holds."""
        try:
            call = self._current_channel().unary_unary(
                _METHODS[signal], request_serializer=_serialize, response_deserializer=_ignore
            )
            call(request, timeout=_TIMEOUT_SECONDS)
        except (grpc.RpcError, OSError, ValueError):
            self.dropped[signal] += items
            return False
        self.sent[signal] += items
        return True

    def close(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def _current_channel(self) -> grpc.Channel:
        with self._lock:
            stamp = self._certificate_time()
            if self._channel is None or stamp != self._built_for:
                if self._channel is not None:
                    self._channel.close()
                self._channel = self._build()
                self._built_for = stamp
            return self._channel

    def _certificate_time(self) -> float:
        if self._pki_dir is None:
            return 0.0
        return (self._pki_dir / f"{self._identity}.crt").stat().st_mtime

    def _build(self) -> grpc.Channel:
        if self._pki_dir is None:
            return grpc.insecure_channel(self._endpoint)
        credentials = grpc.ssl_channel_credentials(
            (self._pki_dir / "ca.crt").read_bytes(),
            (self._pki_dir / f"{self._identity}.key").read_bytes(),
            (self._pki_dir / f"{self._identity}.crt").read_bytes(),
        )
        options = (("grpc.ssl_target_name_override", server_name("aiops")), ("grpc.max_send_message_length", 16 << 20))
        return grpc.secure_channel(self._endpoint, credentials, options)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _ignore(answer: bytes) -> bytes:
    return answer  # None would count as a failure to read it
