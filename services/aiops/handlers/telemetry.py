"""Questions about traces, logs and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.aiops.v1 import telemetry_service_pb2 as pb

from libs.common.domain import DomainError
from libs.common.errors import not_found
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import page_size
from services.aiops.domain.telemetry import SEVERITY_FLOOR, LogRecord, Span, SpanEvent, TraceSummary
from services.aiops.handlers import windows
from services.aiops.store import queries
from services.aiops.store.queries import LogFilter, TraceFilter

if TYPE_CHECKING:
    from services.aiops.app import App


_DEFAULT_STEP_SECONDS = 60
# A curve with more points than this cannot be looked at; it only costs.
_MOST_POINTS = 10_000


async def list_service_stats(request: pb.ListServiceStatsRequest, call: Call[App]) -> pb.ListServiceStatsResponse:
    scope, window = windows.scope(request.parent, call), windows.window(request, call)
    found = await queries.service_stats(call.deps.store, scope, window)
    start, size = windows.position(request), page_size(request.page_size)
    answer = pb.ListServiceStatsResponse(next_page_token=windows.next_token(request, start, size, len(found[start:])))
    for stats in found[start : start + size]:
        answer.services.add(
            service=stats.service,
            requests=stats.requests,
            queries_per_second=stats.queries_per_second,
            error_rate=stats.error_rate,
            p50_seconds=stats.p50,
            p99_seconds=stats.p99,
            operations=[
                pb.OperationStats(
                    operation=o.operation,
                    requests=o.requests,
                    error_rate=o.error_rate,
                    p50_seconds=o.p50,
                    p99_seconds=o.p99,
                )
                for o in stats.operations
            ],
        )
    return answer


async def get_trace(request: pb.GetTraceRequest, call: Call[App]) -> pb.Trace:
    trace_id = request.name.rsplit("/", 1)[1]
    spans = await queries.trace(call.deps.store, windows.scope(request.name, call), trace_id)
    if not spans:
        raise not_found(request.name)
    end = max(span.start + span.duration for span in spans)
    return pb.Trace(
        name=request.name,
        spans=[_span(span) for span in spans],
        services=sorted({span.service for span in spans}),
        duration_seconds=(end - spans[0].start) / 1e9,
    )


async def list_traces(request: pb.ListTracesRequest, call: Call[App]) -> pb.ListTracesResponse:
    wanted = TraceFilter(
        service=request.service,
        operation=request.operation,
        errors_only=request.errors_only,
        min_duration_seconds=request.min_duration_seconds,
    )
    start, size = windows.position(request), page_size(request.page_size)
    scope, window = windows.scope(request.parent, call), windows.window(request, call)
    found = await queries.traces(call.deps.store, scope, window, wanted, size + 1, start)
    return pb.ListTracesResponse(
        traces=[_summary(trace) for trace in found[:size]],
        next_page_token=windows.next_token(request, start, size, len(found)),
    )


async def list_logs(request: pb.ListLogsRequest, call: Call[App]) -> pb.ListLogsResponse:
    wanted = LogFilter(
        service=request.service,
        trace_id=request.trace_id,
        text=request.text,
        min_severity_number=SEVERITY_FLOOR[request.min_severity],
    )
    start, size = windows.position(request), page_size(request.page_size)
    scope, window = windows.scope(request.parent, call), windows.window(request, call)
    found = await queries.logs(call.deps.store, scope, window, wanted, size + 1, start)
    return pb.ListLogsResponse(
        logs=[_log(record) for record in found[:size]],
        next_page_token=windows.next_token(request, start, size, len(found)),
    )


async def query_metric(request: pb.QueryMetricRequest, call: Call[App]) -> pb.QueryMetricResponse:
    window, step = windows.window(request, call), request.step_seconds or _DEFAULT_STEP_SECONDS
    if window.seconds / step > _MOST_POINTS:
        message = f"step_seconds: the window holds more than {_MOST_POINTS} points; choose a longer step"
        raise DomainError("INVALID_FIELD", message, field="step_seconds")
    scope = windows.scope(request.parent, call)
    points = await queries.metric(call.deps.store, scope, request.metric, request.service, window, step)
    answer = pb.QueryMetricResponse()
    series: pb.MetricSeries | None = None
    for point in points:
        if series is None or series.service != point.service or dict(series.attributes) != point.attributes:
            series = answer.series.add(service=point.service, attributes=point.attributes)
        series.points.add(time=windows.timestamp(point.time), value=point.value)
    return answer


def _span(span: Span) -> pb.Span:
    attributes = {**span.attributes, "argosy.org": span.org} if span.org else span.attributes
    return pb.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        service=span.service,
        name=span.name,
        kind=span.kind,
        start_time=windows.timestamp(span.start),
        duration_seconds=span.duration / 1e9,
        status=span.status,
        status_message=span.status_message,
        attributes=attributes,
        events=[_event(event) for event in span.events],
    )


def _event(event: SpanEvent) -> pb.SpanEvent:
    return pb.SpanEvent(name=event.name, time=windows.timestamp(event.time), attributes=event.attributes)


def _summary(trace: TraceSummary) -> pb.TraceSummary:
    return pb.TraceSummary(
        trace_id=trace.trace_id,
        root_service=trace.root_service,
        root_operation=trace.root_operation,
        start_time=windows.timestamp(trace.start),
        duration_seconds=trace.duration / 1e9,
        span_count=trace.span_count,
        error_count=trace.error_count,
        services=trace.services,
    )


def _log(record: LogRecord) -> pb.LogRecord:
    return pb.LogRecord(
        time=windows.timestamp(record.time),
        service=record.service,
        severity=record.severity,
        body=record.body,
        trace_id=record.trace_id,
        span_id=record.span_id,
        attributes=record.attributes,
    )
