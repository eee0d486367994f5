"""The bytes that are put together by hand are the messages that they stand for."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from libs.common.clock import ManualClock
from services.gateway.clients import otlp
from services.gateway.http.exchange import Exchange

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def finished(status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Exchange:
    unused: Any = None
    scope = {"method": "POST", "raw_path": b"/x", "query_string": b"", "headers": headers}
    exchange = Exchange(scope, unused, unused, ManualClock())
    exchange.status = status
    exchange.route = "POST /v1/{name=orgs/*}" + "x" * 300
    exchange.attributes["gen_ai.request.model"] = "ü" * 100
    return exchange


def test_span():
    exchange = finished(503, ((b"traceparent", TRACE), (b"x-request-id", b"mine")))
    span = Span.FromString(otlp.span(exchange, 1.5))
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"
    assert span.span_id.hex() == exchange.span_id
    assert span.name == exchange.route
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.start_time_unix_nano == 1767225600 * 10**9
    assert span.end_time_unix_nano - span.start_time_unix_nano == 15 * 10**8
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert {one.key: one.value.string_value for one in span.attributes} == {
        "http.request.method": "POST",
        "http.response.status_code": "503",
        "gen_ai.request.model": "ü" * 100,
        "argosy.request_id": "mine",
    }


def test_span_without_parent_and_fault():
    span = Span.FromString(otlp.span(finished(), 0.0))
    assert span.parent_span_id == b""
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_access_line():
    exchange = finished(404)
    record = LogRecord.FromString(otlp.access_line(exchange, 0.25))
    assert record.body.string_value == f"{exchange.route} 404 250.0 ms"
    assert (record.severity_number, record.severity_text) == (13, "WARNING")
    assert record.trace_id.hex() == exchange.trace_id
    assert record.span_id.hex() == exchange.span_id
    assert record.time_unix_nano == record.observed_time_unix_nano == 1767225600 * 10**9 + 25 * 10**7
    assert len(record.attributes) == 4
