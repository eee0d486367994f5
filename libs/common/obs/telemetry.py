"""OpenTelemetry in one call: traces, metrics and logs of this process go to the receiver, if there is one."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, UpDownCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from libs.common.obs.logs import OtlpLogHandler, setup_logging
from libs.common.obs.sender import OtlpSender

# A trace should be readable soon after the call that it shows.
_SPAN_DELAY_MILLIS = 500
_METRIC_INTERVAL_MILLIS = 30_000
_SPAN_QUEUE = 8192


class _Spans(SpanExporter):
    def __init__(self, sender: OtlpSender) -> None:
        self._sender = sender

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent = self._sender.send("traces", encode_spans(spans), len(spans))
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        return None


class _Metrics(MetricExporter):
    def __init__(self, sender: OtlpSender) -> None:
        # Deltas: a receiver can add them up over processes and restarts without knowing when each began.
        delta = AggregationTemporality.DELTA
        super().__init__(preferred_temporality={Counter: delta, Histogram: delta, UpDownCounter: delta})
        self._sender = sender

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> MetricExportResult:
        points = sum(
            len(metric.data.data_points)
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        )
        sent = self._sender.send("metrics", encode_metrics(metrics_data), points)
        return MetricExportResult.SUCCESS if sent else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        return None


@dataclass
class Telemetry:
    """What `setup_telemetry` started. `close` sends what is queued and stops the threads."""

    sender: OtlpSender | None
    _tracers: TracerProvider | None
    _meters: MeterProvider | None
    _logs: OtlpLogHandler | None

    def flush(self) -> None:
        if self._tracers is not None:
            self._tracers.force_flush(5_000)
        if self._meters is not None:
            self._meters.force_flush(5_000)
        if self._logs is not None:
            self._logs.flush()

    def close(self) -> None:
        self.flush()
        if self._tracers is not None:
            self._tracers.shutdown()
        if self._meters is not None:
            self._meters.shutdown()
        if self._logs is not None:
            logging.getLogger().removeHandler(self._logs)
            self._logs.stop()
        if self.sender is not None:
            self.sender.close()


def setup_telemetry(
    service: str, *, role: str, endpoint: str, pki_dir: Path | None, identity: str | None = None
) -> Telemetry:
    """Starts logging, tracing and metrics for this process.

    Args:
        service: `service.name` of everything that it sends.
        role: `rpc`, `jobs`, `all`, `replica`, `engine`.
        endpoint: `host:port` of the OTLP/gRPC receiver; empty: log lines only.
        pki_dir: Folder with the certificates; None: no TLS.
        identity: Whose certificate to show; None: the service's.
    """
    setup_logging(service, role)
    if not endpoint:
        return Telemetry(None, None, None, None)
    attributes = {
        "service.name": service,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": str(os.getpid()),
        "argosy.role": role,
    }
    resource = Resource(attributes)
    sender = OtlpSender(endpoint, pki_dir, identity or service)
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(
        BatchSpanProcessor(_Spans(sender), max_queue_size=_SPAN_QUEUE, schedule_delay_millis=_SPAN_DELAY_MILLIS)
    )
    reader = PeriodicExportingMetricReader(_Metrics(sender), export_interval_millis=_METRIC_INTERVAL_MILLIS)
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    logs = OtlpLogHandler(sender, attributes)
    logging.getLogger().addHandler(logs)
    return Telemetry(sender, tracers, meters, logs)


def tracer() -> trace.Tracer:
    return trace.get_tracer("argosy")


def meter() -> metrics.Meter:
    return metrics.get_meter("argosy")


def inject(context: Context | None = None) -> dict[str, str]:
    """The W3C trace context as a carrier (`traceparent`, `tracestate`) for gRPC metadata, NATS headers or a row."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier


def extract(carrier: Mapping[str, str]) -> Context:
    """The context that `inject` wrote; an empty one when the carrier has none."""
    return propagate.extract(dict(carrier))


def traceparent() -> str:
    """The W3C traceparent of the current span; empty outside of one."""
    return inject().get("traceparent", "")
