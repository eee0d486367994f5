"""What is told about every request: one span, one access line, a place in the figures.

A request only puts itself into a queue. A thread makes OTLP of what is in it, twice a second: building spans where the
request is served would cost it more than finding its route.
"""

from __future__ import annotations

import os
import threading
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from libs.common.obs.sender import OtlpSender
from services.gateway.http.exchange import Exchange

_SCOPE = InstrumentationScope(name="argosy.gateway")
# As many as come in some seconds of full load; more are dropped and counted.
_QUEUE = 16_384
_BATCH = 512
_FLUSH_SECONDS = 0.5
_METRIC_SECONDS = 10.0
# Seconds; the boundaries that OpenTelemetry advises for HTTP, and three more for long generations.
# https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpserverrequestduration
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0)
_METRIC = "http.server.request.duration"
_INFO, _WARNING, _ERROR = 9, 13, 17


class _Figures:
    """Counts and durations of one route and status."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.count += 1
        self.total += seconds


_Key = tuple[str, int]


class Reporter:
    """Takes finished requests.

    Args:
        sender: where telemetry goes; None: figures are kept, spans are not.
        access_log: whether each request gets a log line.
    """

    def __init__(self, sender: OtlpSender | None, access_log: bool) -> None:
        self._sender = sender
        self._access_log = access_log
        self._queue: deque[tuple[Exchange, float]] = deque()
        self.dropped = 0
        self._totals: dict[_Key, _Figures] = {}
        self._since: dict[_Key, _Figures] = {}
        self._since_nanos = 0
        self._last_nanos = 0
        self._lock = threading.Lock()
        self._resource = Resource(
            attributes=[
                _pair("service.name", "gateway"),
                _pair("service.instance.id", str(uuid.uuid4())),
                _pair("process.pid", str(os.getpid())),
                _pair("argosy.role", "rpc"),
            ]
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-reporter", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Takes a request that has its answer."""
        if len(self._queue) < _QUEUE:
            self._queue.append((exchange, exchange.clock.monotonic() - exchange.began))
        else:
            self.dropped += 1

    def close(self) -> None:
        """Sends what is queued and stops the thread."""
        self._stop.set()
        self._thread.join(timeout=10)

    def prometheus(self) -> bytes:
        """The figures since the start of the process, in Prometheus' text format."""
        with self._lock:
            lines = ["# TYPE argosy_http_request_duration_seconds histogram"]
            for (route, status), figures in sorted(self._totals.items()):
                labels = f'route={orjson.dumps(route).decode()},status="{status}"'
                reached = 0
                for bound, count in zip((*BOUNDS, "+Inf"), figures.buckets, strict=True):
                    reached += count
                    lines.append(f'argosy_http_request_duration_seconds_bucket{{{labels},le="{bound}"}} {reached}')
                lines.append(f"argosy_http_request_duration_seconds_sum{{{labels}}} {figures.total:.6f}")
                lines.append(f"argosy_http_request_duration_seconds_count{{{labels}}} {figures.count}")
        lines += ["# TYPE argosy_telemetry_dropped_total counter", f"argosy_telemetry_dropped_total {self.dropped}"]
        return "\n".join(lines).encode() + b"\n"

    def _run(self) -> None:
        beats = 0
        while not self._stop.wait(_FLUSH_SECONDS):
            self._flush()
            beats += 1
            if beats * _FLUSH_SECONDS >= _METRIC_SECONDS:
                beats = 0
                self._send_metrics()
        self._flush()
        self._send_metrics()
        if self._sender is not None:
            self._sender.close()

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            batch = [queue.popleft() for _ in range(min(len(queue), _BATCH))]
            self._count(batch)
            spans = [_span(exchange, seconds) for exchange, seconds in batch if exchange.sampled]
            if self._sender is None:
                continue
            scope = ScopeSpans(scope=_SCOPE, spans=spans)
            traces = ExportTraceServiceRequest(
                resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scope])]
            )
            self._sender.send("traces", traces, len(spans))
            if self._access_log:
                records = [_line(exchange, seconds) for exchange, seconds in batch]
                logs = ResourceLogs(resource=self._resource, scope_logs=[ScopeLogs(scope=_SCOPE, log_records=records)])
                self._sender.send("logs", ExportLogsServiceRequest(resource_logs=[logs]), len(records))

    def _count(self, batch: Sequence[tuple[Exchange, float]]) -> None:
        with self._lock:
            for exchange, seconds in batch:
                key = (exchange.route or "unknown", exchange.status)
                for figures in (self._totals, self._since):
                    found = figures.get(key)
                    if found is None:
                        found = figures[key] = _Figures()
                    found.add(seconds)
            if batch:
                exchange, seconds = batch[-1]
                self._last_nanos = _nanos(exchange) + int(seconds * 1e9)
                self._since_nanos = self._since_nanos or _nanos(batch[0][0])

    def _send_metrics(self) -> None:
        with self._lock:
            since, self._since = self._since, {}
            start, self._since_nanos = self._since_nanos, 0
        if self._sender is None or not since:
            return
        points = [_point(key, figures, start, self._last_nanos) for key, figures in since.items()]
        histogram = Histogram(
            data_points=points, aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
        )
        metric = Metric(name=_METRIC, unit="s", histogram=histogram)
        scope = ScopeMetrics(scope=_SCOPE, metrics=[metric])
        request = ExportMetricsServiceRequest(
            resource_metrics=[ResourceMetrics(resource=self._resource, scope_metrics=[scope])]
        )
        self._sender.send("metrics", request, len(points))


def _point(key: _Key, figures: _Figures, start: int, end: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=[_pair("http.route", key[0]), _pair("http.response.status_code", str(key[1]))],
        start_time_unix_nano=start,
        time_unix_nano=end,
        count=figures.count,
        sum=figures.total,
        bucket_counts=figures.buckets,
        explicit_bounds=BOUNDS,
    )


def _nanos(exchange: Exchange) -> int:
    return int(exchange.started.timestamp() * 1e6) * 1000


def _span(exchange: Exchange, seconds: float) -> Span:
    start = _nanos(exchange)
    status = exchange.status
    return Span(
        trace_id=bytes.fromhex(exchange.trace_id),
        span_id=bytes.fromhex(exchange.span_id),
        parent_span_id=bytes.fromhex(exchange.parent_id),
        name=exchange.route or exchange.method,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(seconds * 1e9),
        attributes=_attributes(exchange),
        status=Status(code=Status.STATUS_CODE_ERROR) if status >= 500 else None,
    )


def _attributes(exchange: Exchange) -> list[KeyValue]:
    return [
        _pair("http.request.method", exchange.method),
        _pair("http.response.status_code", str(exchange.status)),
        _pair("argosy.request_id", exchange.request_id),
        *(_pair(key, value) for key, value in exchange.attributes.items()),
    ]


def _line(exchange: Exchange, seconds: float) -> LogRecord:
    status = exchange.status
    number, text = (_INFO, "INFO") if status < 400 else (_WARNING, "WARNING") if status < 500 else (_ERROR, "ERROR")
    nanos = _nanos(exchange) + int(seconds * 1e9)
    return LogRecord(
        time_unix_nano=nanos,
        observed_time_unix_nano=nanos,
        severity_number=number,  # type: ignore[arg-type]
        severity_text=text,
        body=AnyValue(string_value=f"{exchange.route or exchange.method} {status} {seconds * 1000:.1f} ms"),
        attributes=_attributes(exchange),
        trace_id=bytes.fromhex(exchange.trace_id),
        span_id=bytes.fromhex(exchange.span_id),
    )


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
