"""OTLP/HTTP for applications outside the mesh: `POST /v1/{traces,metrics,logs}` with an API key.

Protobuf bodies, plain or gzip, as https://opentelemetry.io/docs/specs/otlp/#otlphttp has them. What they say about
their organization is not believed: it is that of the key.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import orjson
from google.protobuf.message import DecodeError

from libs.common.errors import ArgosyError
from services.aiops.handlers.otlp import ANSWERS, FULL_DISK
from services.aiops.store.telemetry import TelemetryStore
from services.aiops.store.wal import Frame, Signal

# As large as a gRPC message may be; counted after decompression.
BODY_LIMIT = 9 << 20
_ROUTES: dict[str, Signal] = {"/v1/traces": "spans", "/v1/metrics": "metrics", "/v1/logs": "logs"}

# Gives the organization id of an API key; raises ArgosyError.
OrgOfKey = Callable[[str], Awaitable[str]]


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class OtlpHttp:
    """The ASGI application."""

    def __init__(self, store: TelemetryStore, org_of_key: OrgOfKey) -> None:
        self._store = store
        self._org_of_key = org_of_key

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            signal = await self._accept(scope, receive)
            await _answer(send, 200, b"application/x-protobuf", ANSWERS[signal])
        except _Refused as refusal:
            body = orjson.dumps({"code": refusal.status, "message": refusal.message})
            await _answer(send, refusal.status, b"application/json", body)

    async def _accept(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Signal:
        signal = _ROUTES.get(scope["path"])
        if signal is None:
            raise _Refused(404, "there are /v1/traces, /v1/metrics and /v1/logs")
        if scope["method"] != "POST":
            raise _Refused(405, "use POST")
        headers = {name.lower(): value for name, value in scope["headers"]}
        if headers.get(b"content-type", b"").split(b";")[0].strip() != b"application/x-protobuf":
            raise _Refused(415, "the content type must be application/x-protobuf")
        org = await self._authenticate(headers)
        body = await _body(receive, headers.get(b"content-encoding", b"identity"))
        try:
            await self._store.append(Frame(signal, org, body))
        except DecodeError:
            raise _Refused(400, "the body is no OTLP request") from None
        except OSError as error:
            raise _Refused(503, "full" if error.errno in FULL_DISK else "away") from None
        return signal

    async def _authenticate(self, headers: dict[bytes, bytes]) -> str:
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise _Refused(401, "send `Authorization: Bearer <API key>`")
        try:
            return await self._org_of_key(key)
        except ArgosyError as error:
            unauthenticated = error.code is grpc.StatusCode.UNAUTHENTICATED
            raise _Refused(401 if unauthenticated else 503, error.message) from None


async def _body(receive: Callable[[], Awaitable[Any]], encoding: bytes) -> bytes:
    if encoding not in (b"identity", b"gzip"):
        raise _Refused(415, "the content encoding must be gzip or identity")
    # 16 + 15: a gzip header and the largest window (zlib manual, inflateInit2).
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == b"gzip" else None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "the body ended early")
        chunk: bytes = message.get("body", b"")
        if inflate is not None:
            try:
                chunk = inflate.decompress(chunk, BODY_LIMIT + 1 - len(body))
            except zlib.error:
                raise _Refused(400, "the body is not gzip") from None
        body += chunk
        if len(body) > BODY_LIMIT:
            raise _Refused(413, f"the body is larger than {BODY_LIMIT} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def _answer(send: Any, status: int, content_type: bytes, body: bytes) -> None:
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
