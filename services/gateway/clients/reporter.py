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
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from libs.common.obs.sender import OtlpSender
from services.gateway.clients import otlp
from services.gateway.http.exchange import Exchange

_SCOPE = InstrumentationScope(name="argosy.gateway")
# As many as come in some seconds of full load; more are dropped and counted.
_QUEUE = 16_384
_BATCH = 512
_FLUSH_SECONDS = 0.5
_METRIC_SECONDS = 30.0
# Seconds; the boundaries that OpenTelemetry advises for HTTP, and three more for long generations.
# https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpserverrequestduration
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0)
_METRIC = "http.server.request.duration"
# Field 2 of ScopeSpans and of ScopeLogs.
_ITEM = b"\x12"


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
# A request, and the seconds that it took.
_Finished = tuple[Exchange, float]


class Reporter:
    """Takes finished requests.

    Args:
        sender: where telemetry goes; None: figures are kept, spans are not.
        access_log: whether each request gets a log line.
    """

    def __init__(self, sender: OtlpSender | None, access_log: bool) -> None:
        self._sender = sender
        self._access_log = access_log
        self._queue: deque[_Finished] = deque()
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
            if self._sender is not None:
                self._send_spans([one for one in batch if one[0].sampled])
                if self._access_log:
                    self._send_lines(batch)

    def _send_spans(self, batch: Sequence[_Finished]) -> None:
        spans = b"".join(otlp.length_prefixed(_ITEM, otlp.span(*one)) for one in batch)
        scope = ScopeSpans(scope=_SCOPE)
        scope.MergeFromString(spans)
        traces = ResourceSpans(resource=self._resource, scope_spans=[scope])
        assert self._sender is not None
        self._sender.send("traces", ExportTraceServiceRequest(resource_spans=[traces]), len(batch))

    def _send_lines(self, batch: Sequence[_Finished]) -> None:
        records = b"".join(otlp.length_prefixed(_ITEM, otlp.access_line(*one)) for one in batch)
        scope = ScopeLogs(scope=_SCOPE)
        scope.MergeFromString(records)
        logs = ResourceLogs(resource=self._resource, scope_logs=[scope])
        assert self._sender is not None
        self._sender.send("logs", ExportLogsServiceRequest(resource_logs=[logs]), len(batch))

    def _count(self, batch: Sequence[_Finished]) -> None:
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
                self._last_nanos = otlp.start_nanos(exchange) + int(seconds * 1e9)
                self._since_nanos = self._since_nanos or otlp.start_nanos(batch[0][0])

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


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))
