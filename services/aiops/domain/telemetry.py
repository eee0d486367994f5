"""What telemetry is once it has been read: spans, log records and metric points as plain rows.

The fields follow the OpenTelemetry protocol (opentelemetry-proto 1.x); times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber: the first number of each range.
SEVERITY_FLOOR = {"": 0, "DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17}


@dataclass(slots=True)
class SpanEvent:
    name: str
    time: int
    attributes: dict[str, str]


@dataclass(slots=True)
class Span:
    """One operation of one process. `org` is empty for work that belongs to no tenant."""

    org: str
    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    kind: str
    start: int
    duration: int
    status: str
    status_message: str
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    events: list[SpanEvent] = field(default_factory=list[SpanEvent])


@dataclass(slots=True)
class LogRecord:
    org: str
    time: int
    service: str
    severity_number: int
    severity: str
    body: str
    trace_id: str
    span_id: str
    attributes: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class MetricPoint:
    """A point of a metric. A histogram is kept as its sum (`value`) and count."""

    org: str
    time: int
    service: str
    name: str
    kind: str
    value: float
    count: int
    attributes: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class OperationStats:
    operation: str
    requests: int
    error_rate: float
    p50: float
    p99: float


@dataclass(slots=True)
class ServiceStats:
    """Calls that a service answered within a window. Latencies in seconds."""

    service: str
    requests: int
    queries_per_second: float
    error_rate: float
    p50: float
    p99: float
    operations: list[OperationStats]


@dataclass(slots=True)
class TraceSummary:
    trace_id: str
    root_service: str
    root_operation: str
    start: int
    duration: int
    span_count: int
    error_count: int
    services: list[str]


@dataclass(slots=True)
class Window:
    """From `start` to before `end`, nanoseconds since the Unix epoch."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        return max((self.end - self.start) / 1e9, 1e-9)
