"""The span of a served call arrives like any other, and carries what handlers add."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.errors import ArgosyError
from libs.common.rpc.interceptors import trace
from libs.common.rpc.span import SpanSource
from tests.unit.common.rpc_server import rig
from tests.unit.common.test_rpc_chain import BODY, GET, reason

TRACE, PARENT = "1" * 32, "2" * 16


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Telemetry of this test alone."""
    provider = TracerProvider(resource=Resource({"service.name": "dataset"}))
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "tracer", lambda: provider.get_tracer("argosy"))
    monkeypatch.setattr(trace.api, "get_tracer_provider", lambda: provider)
    yield memory
    provider.shutdown()


async def call(flags: str, failure: BaseException | None = None) -> str:
    async with rig() as server:
        server.handlers.failure = failure
        metadata = [*server.mesh.metadata(), ("x-request-id", "req-1")]
        if flags:
            metadata.append(("traceparent", f"00-{TRACE}-{PARENT}-{flags}"))
        await reason(server.call(GET, BODY, metadata=metadata))
        return server.handlers.calls[0].traceparent


async def test_sampled_call(exporter: InMemorySpanExporter) -> None:
    traceparent = await call("01")
    (span,) = exporter.get_finished_spans()
    assert span.name == GET.lstrip("/")
    assert f"{span.context.trace_id:032x}" == TRACE  # pyrefly: ignore[missing-attribute]
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert traceparent == f"00-{TRACE}-{span.context.span_id:016x}-01"  # pyrefly: ignore[missing-attribute]
    assert span.attributes is not None
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "argosy.common.v1.TaskService",
        "rpc.method": "GetTask",
        "argosy.org": "acme",
        "argosy.request_id": "req-1",
    }
    assert span.end_time >= span.start_time  # pyrefly: ignore[unsupported-operation]
    sent = encode_spans([span]).resource_spans[0]
    assert sent.scope_spans[0].spans[0].name == span.name
    assert sent.resource.attributes[0].value.string_value == "dataset"


async def test_failed_call(exporter: InMemorySpanExporter) -> None:
    await call("01", ArgosyError("DATABASE_UNAVAILABLE", "no"))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is api.StatusCode.ERROR
    assert span.status.description == "DATABASE_UNAVAILABLE"


async def test_a_refused_call_is_no_fault_of_the_server(exporter: InMemorySpanExporter) -> None:
    await call("01", ArgosyError("STATE_CONFLICT", "no"))
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is api.StatusCode.UNSET
    assert dict(span.attributes or {})["argosy.reason"] == "STATE_CONFLICT"


async def test_the_callers_decision_is_respected(exporter: InMemorySpanExporter) -> None:
    traceparent = await call("00")
    assert exporter.get_finished_spans() == ()
    assert traceparent == f"00-{TRACE}-{PARENT}-00", "the trace is carried on"


@pytest.mark.parametrize("flags", ["", "zz"])
async def test_a_call_without_a_trace_begins_one(exporter: InMemorySpanExporter, flags: str) -> None:
    await call(flags)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_handlers_use_it_like_any_span(exporter: InMemorySpanExporter) -> None:
    provider = api.get_tracer_provider()
    parent = api.SpanContext(1, 2, True, api.TraceFlags(1))
    span = SpanSource(provider).start("call", parent, {"a": 1})
    assert span is not None
    with api.use_span(span), provider.get_tracer("t").start_as_current_span("child"):
        span.set_attribute("tokens", 7)
        span.add_event("cached")
        span.record_exception(ValueError("secret"))
    for number in range(1000):
        span.set_attribute(f"k{number}", number)
    span.end()
    span.set_attribute("late", 1)
    child, call_span = exporter.get_finished_spans()
    assert child.parent is not None
    assert child.parent.span_id == call_span.context.span_id  # pyrefly: ignore[missing-attribute]
    assert call_span.attributes is not None
    assert call_span.attributes["tokens"] == 7
    assert len(call_span.attributes) == 128
    assert [event.name for event in call_span.events] == ["cached", "exception"]
    assert "secret" not in str(call_span.events[1].attributes)
