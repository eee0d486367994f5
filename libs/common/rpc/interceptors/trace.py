"""Request id and span of a call, joined to the caller's trace."""

from __future__ import annotations

import re

from opentelemetry import context as otel
from opentelemetry import trace as api
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from libs.common.ids import uuid7
from libs.common.obs import tracer
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.translate import translate

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def parent_context(traceparent: str) -> otel.Context:
    """The caller's span as a context; a new trace when it sent none.

    Reads one header instead of asking every propagator.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return otel.Context()
    span_context = SpanContext(
        int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(int(match[3], 16))
    )
    return api.set_span_in_context(NonRecordingSpan(span_context), otel.Context())


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Gives the call an id and a span named by the full method, and keeps the span current while the call runs."""
    name = method.policy.path.lstrip("/")
    fixed = {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.rpc}
    source = tracer()

    async def trace(exchange: Exchange) -> bytes | None:
        call = exchange.call
        given = exchange.text("x-request-id")
        call.request_id = given if _REQUEST_ID.fullmatch(given) else uuid7()
        context = parent_context(exchange.text("traceparent"))
        span = source.start_span(name, context, SpanKind.SERVER, fixed)
        identity = span.get_span_context()
        if identity.is_valid:
            call.traceparent = f"00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}"
        exchange.span = span if span.is_recording() else None
        token = otel.attach(api.set_span_in_context(span, context))
        try:
            return await step(exchange)
        except BaseException as failure:
            if exchange.span is not None:
                reason = translate(failure).reason
                span.set_attribute("argosy.reason", reason)
                span.set_status(Status(StatusCode.ERROR, reason))
            raise
        finally:
            if exchange.span is not None:
                span.set_attribute("argosy.request_id", call.request_id)
                span.set_attribute("argosy.org", call.principal.org)
                span.end()
            otel.detach(token)

    del host
    return trace
