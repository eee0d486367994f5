"""Spans and log records of requests as OTLP bytes.

Building the message classes of a span and a log record was most of what telling about a request cost, so their bytes
are put together here, and what many requests have in common is made once. Field numbers are those of
trace/v1/trace.proto and logs/v1/logs.proto in https://github.com/open-telemetry/opentelemetry-proto.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from services.gateway.http.exchange import Exchange

_TIMES = struct.Struct("<BQBQ")
_TIME = struct.Struct("<BQ")
_ATTRIBUTE_OF_SPAN, _ATTRIBUTE_OF_LOG = b"\x4a", b"\x32"
_KIND_SERVER = b"\x30\x02"
_STATUS_ERROR = b"\x7a\x02\x18\x02"
# (severity_number, severity_text), as two fields.
_INFO, _WARNING, _ERROR = b"\x10\x09\x1a\x04INFO", b"\x10\x0d\x1a\x07WARNING", b"\x10\x11\x1a\x05ERROR"


def length_prefixed(tag: bytes, data: bytes) -> bytes:
    """A field whose value is bytes: tag, length, value."""
    length = len(data)
    if length < 128:
        return tag + bytes((length,)) + data
    prefix = b""
    while length > 127:
        prefix += bytes((length & 127 | 128,))
        length >>= 7
    return tag + prefix + bytes((length,)) + data


def _attribute(tag: bytes, key: str, value: str) -> bytes:
    text = length_prefixed(b"\x12", length_prefixed(b"\x0a", value.encode()))
    return length_prefixed(tag, length_prefixed(b"\x0a", key.encode()) + text)


@lru_cache(maxsize=2048)
def _common(tag: bytes, method: str, status: int, attributes: tuple[tuple[str, str], ...]) -> bytes:
    """The attributes that many requests share."""
    pairs = (("http.request.method", method), ("http.response.status_code", str(status)), *attributes)
    return b"".join(_attribute(tag, key, value) for key, value in pairs)


@lru_cache(maxsize=512)
def _name(route: str) -> bytes:
    return length_prefixed(b"\x2a", route.encode())


def start_nanos(exchange: Exchange) -> int:
    """When a request arrived, as UNIX nanoseconds."""
    return int(exchange.started.timestamp() * 1e6) * 1000


def span(exchange: Exchange, seconds: float) -> bytes:
    """The span of a request that took so long, serialised."""
    start = start_nanos(exchange)
    parent = b"\x22\x08" + bytes.fromhex(exchange.parent_id) if exchange.parent_id else b""
    return b"".join(
        (
            b"\x0a\x10",
            bytes.fromhex(exchange.trace_id),
            b"\x12\x08",
            bytes.fromhex(exchange.span_id),
            parent,
            _name(exchange.route or exchange.method),
            _KIND_SERVER,
            _TIMES.pack(0x39, start, 0x41, start + int(seconds * 1e9)),
            _common(_ATTRIBUTE_OF_SPAN, exchange.method, exchange.status, tuple(exchange.attributes.items())),
            _attribute(_ATTRIBUTE_OF_SPAN, "argosy.request_id", exchange.request_id),
            _STATUS_ERROR if exchange.status >= 500 else b"",
        )
    )


def access_line(exchange: Exchange, seconds: float) -> bytes:
    """The log record of a request that took so long, serialised."""
    status = exchange.status
    nanos = start_nanos(exchange) + int(seconds * 1e9)
    body = f"{exchange.route or exchange.method} {status} {seconds * 1000:.1f} ms".encode()
    return b"".join(
        (
            _TIME.pack(0x09, nanos),
            _INFO if status < 400 else _WARNING if status < 500 else _ERROR,
            length_prefixed(b"\x2a", length_prefixed(b"\x0a", body)),
            _common(_ATTRIBUTE_OF_LOG, exchange.method, status, tuple(exchange.attributes.items())),
            _attribute(_ATTRIBUTE_OF_LOG, "argosy.request_id", exchange.request_id),
            b"\x4a\x10",
            bytes.fromhex(exchange.trace_id),
            b"\x52\x08",
            bytes.fromhex(exchange.span_id),
            _TIME.pack(0x59, nanos),
        )
    )
