"""Reads OTLP requests into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1 import trace_pb2

from services.aiops.domain.telemetry import LogRecord, MetricPoint, Span, SpanEvent

ORG_ATTRIBUTE = "argosy.org"
# Longer values are cut: one hostile attribute must not fill the store.
_VALUE_LIMIT = 4096
_ATTRIBUTE_LIMIT = 128
# Wire times and counts have 64 bits without a sign, columns have one: the year 2116 is far enough, and the sum of two
# such numbers still fits.
_NUMBER_LIMIT = (1 << 62) - 1
_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8

_KINDS = {0: "UNSPECIFIED", 1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}
_STATUSES = {0: "UNSET", 1: "OK", 2: "ERROR"}


def text_of(value: AnyValue) -> str:
    """A value as text, whatever its type, cut to a sane length."""
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    if kind == "string_value":
        return value.string_value[:_VALUE_LIMIT]
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "array_value":
        return ("[" + ", ".join(text_of(v) for v in value.array_value.values[:64]) + "]")[:_VALUE_LIMIT]
    if kind == "kvlist_value":
        pairs = (f"{p.key}={text_of(p.value)}" for p in value.kvlist_value.values[:64])
        return ("{" + ", ".join(pairs) + "}")[:_VALUE_LIMIT]
    if kind == "bytes_value":
        return value.bytes_value[: _VALUE_LIMIT // 2].hex()
    return str(getattr(value, kind))


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        if len(found) == _ATTRIBUTE_LIMIT:
            break
        found[pair.key[:256]] = text_of(pair.value)
    return found


def _bounded(number: int) -> int:
    return min(number, _NUMBER_LIMIT)


def spans_of(request: ExportTraceServiceRequest, org: str | None) -> Iterator[Span]:
    """The spans of a request. `org` overrides what they say about themselves; None trusts them."""
    for resource_spans in request.resource_spans:
        service = attributes_of(resource_spans.resource.attributes).get("service.name", "unknown")
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                yield _span(span, service, org)


def _span(span: trace_pb2.Span, service: str, org: str | None) -> Span:
    attributes = attributes_of(span.attributes)
    own = attributes.pop(ORG_ATTRIBUTE, "")
    return Span(
        org=own if org is None else org,
        trace_id=span.trace_id[:_TRACE_ID_BYTES].hex(),
        span_id=span.span_id[:_SPAN_ID_BYTES].hex(),
        parent_span_id=span.parent_span_id[:_SPAN_ID_BYTES].hex(),
        service=service,
        name=span.name[:_VALUE_LIMIT],
        kind=_KINDS.get(span.kind, "UNSPECIFIED"),
        start=_bounded(span.start_time_unix_nano),
        duration=_bounded(max(span.end_time_unix_nano - span.start_time_unix_nano, 0)),
        status=_STATUSES.get(span.status.code, "UNSET"),
        status_message=span.status.message[:_VALUE_LIMIT],
        attributes=attributes,
        events=[
            SpanEvent(event.name[:256], _bounded(event.time_unix_nano), attributes_of(event.attributes))
            for event in span.events[:64]
        ],
    )


def logs_of(request: ExportLogsServiceRequest, org: str | None) -> Iterator[LogRecord]:
    """The log records of a request; `org` as in `spans_of`."""
    for resource_logs in request.resource_logs:
        service = attributes_of(resource_logs.resource.attributes).get("service.name", "unknown")
        for scope in resource_logs.scope_logs:
            for record in scope.log_records:
                attributes = attributes_of(record.attributes)
                own = attributes.pop(ORG_ATTRIBUTE, "")
                yield LogRecord(
                    org=own if org is None else org,
                    time=_bounded(record.time_unix_nano or record.observed_time_unix_nano),
                    service=service,
                    severity_number=record.severity_number,
                    severity=record.severity_text[:16],
                    body=text_of(record.body),
                    trace_id=record.trace_id[:_TRACE_ID_BYTES].hex(),
                    span_id=record.span_id[:_SPAN_ID_BYTES].hex(),
                    attributes=attributes,
                )


def metrics_of(request: ExportMetricsServiceRequest, org: str | None) -> Iterator[MetricPoint]:
    """The points of a request; `org` as in `spans_of`."""
    for resource_metrics in request.resource_metrics:
        service = attributes_of(resource_metrics.resource.attributes).get("service.name", "unknown")
        for scope in resource_metrics.scope_metrics:
            for metric in scope.metrics:
                yield from _points(metric, service, org)


def _points(metric: Metric, service: str, org: str | None) -> Iterator[MetricPoint]:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    for point in getattr(metric, kind).data_points:
        attributes = attributes_of(point.attributes)
        own = attributes.pop(ORG_ATTRIBUTE, "")
        if kind in ("gauge", "sum"):
            value = point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)
            count = 1
        else:
            value, count = point.sum, point.count
        yield MetricPoint(
            org=own if org is None else org,
            time=_bounded(point.time_unix_nano),
            service=service,
            name=metric.name[:256],
            kind=kind,
            value=value,
            count=_bounded(count),
            attributes=attributes,
        )
