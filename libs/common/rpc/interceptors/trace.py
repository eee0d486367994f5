"""Request id and span of a call, joined to the caller's trace."""

from __future__ import annotations

import re

import grpc
from opentelemetry import context as otel
from opentelemetry import trace as api
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from libs.common.ids import uuid7
from libs.common.obs import tracer
from libs.common.rpc.method import Exchange, Host, Method, Step
from libs.common.rpc.span import SpanSource
from libs.common.rpc.translate import translate

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# What a caller did wrong is no error of the server's span:
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/#grpc-status
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def remote_parent(traceparent: str) -> SpanContext | None:
    """The caller's span; None when it sent none. Reads one header instead of asking every propagator."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    parent = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16)))
    return parent if parent.is_valid else None


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Gives the call an id and a span named by the full method, and keeps the span current while the call runs."""
    del host
    name = method.policy.path.lstrip("/")
    fixed = {"rpc.system": "grpc", "rpc.service": method.service, "rpc.method": method.rpc}
    roots, calls = tracer(), SpanSource(api.get_tracer_provider())
    empty = otel.Context()

    async def trace(exchange: Exchange) -> bytes | None:
        call = exchange.call
        given = exchange.text("x-request-id")
        call.request_id = given if _REQUEST_ID.fullmatch(given) else uuid7()
        header = exchange.text("traceparent")
        parent = remote_parent(header)
        context = api.set_span_in_context(NonRecordingSpan(parent), empty) if parent is not None else empty
        if parent is not None and not parent.trace_flags.sampled:
            # The caller decided against this trace: it is carried on, and costs nothing.
            call.traceparent = header
            token = otel.attach(context)
            try:
                return await step(exchange)
            finally:
                otel.detach(token)
        span = calls.start(name, parent, fixed) or roots.start_span(name, context, SpanKind.SERVER, fixed)
        identity = span.get_span_context()
        if identity.is_valid:
            call.traceparent = f"00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}"
        token = otel.attach(api.set_span_in_context(span, context))
        try:
            return await step(exchange)
        except BaseException as failure:
            error = translate(failure)
            span.set_attributes({"argosy.reason": error.reason, "rpc.grpc.status_code": error.code.value[0]})
            if error.code in _FAULTS:
                span.set_status(Status(StatusCode.ERROR, error.reason))
            raise
        finally:
            span.set_attributes({"argosy.request_id": call.request_id, "argosy.org": call.principal.org})
            span.end()
            otel.detach(token)

    return trace
