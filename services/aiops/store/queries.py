"""Every question that aiops answers about telemetry, as SQL.

`org` None means: all organizations. A trace belongs to an organization when one of its spans says so; the spans in
between that say nothing (queries, framework work) are shown with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from services.aiops.domain.telemetry import (
    LogRecord,
    MetricPoint,
    OperationStats,
    ServiceStats,
    Span,
    SpanEvent,
    TraceSummary,
    Window,
)
from services.aiops.store.telemetry import TelemetryStore

_SERVED = "kind = 'SERVER' AND start >= ? AND start < ? AND (? IS NULL OR org = ?)"
_COUNTS = "count(*), avg(CASE WHEN status = 'ERROR' THEN 1.0 ELSE 0.0 END)"
# Whoever watches stays as long as he likes: that says nothing about how fast a service answers.
_ANSWERS = "FILTER (NOT regexp_matches(name, '(/Watch[A-Za-z]*|:watch)$'))"
_SPAN_COLUMNS = """
    org, trace_id, span_id, parent_span_id, service, name, kind, start, duration, status, status_message,
    attributes, events
"""


@dataclass(frozen=True, kw_only=True)
class TraceFilter:
    service: str = ""
    operation: str = ""
    errors_only: bool = False
    min_duration_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AuditFilter:
    actor: str = ""
    resource: str = ""


@dataclass(frozen=True, kw_only=True)
class LogFilter:
    service: str = ""
    trace_id: str = ""
    text: str = ""
    min_severity_number: int = 0


async def service_stats(store: TelemetryStore, org: str | None, window: Window) -> list[ServiceStats]:
    """Calls answered by each service within the window, by SERVER spans (OpenTelemetry RPC conventions)."""
    bounds = [window.start, window.end, org, org]
    totals = await store.query(
        "spans",
        f"""
        SELECT service, {_COUNTS}, coalesce(quantile_cont(duration, 0.5) {_ANSWERS} / 1e9, 0.0),
               coalesce(quantile_cont(duration, 0.99) {_ANSWERS} / 1e9, 0.0)
        FROM {{rows}} WHERE {_SERVED} GROUP BY service ORDER BY service
        """,
        bounds,
    )
    operations = await store.query(
        "spans",
        f"""
        SELECT service, name, {_COUNTS}, quantile_cont(duration, 0.5) / 1e9, quantile_cont(duration, 0.99) / 1e9
        FROM {{rows}} WHERE {_SERVED} GROUP BY service, name ORDER BY 3 DESC
        """,
        bounds,
    )
    by_service: dict[str, list[OperationStats]] = {}
    for service, name, requests, error_rate, p50, p99 in operations:
        by_service.setdefault(service, []).append(OperationStats(name, requests, error_rate, p50, p99))
    return [
        ServiceStats(service, requests, requests / window.seconds, error_rate, p50, p99, by_service[service])
        for service, requests, error_rate, p50, p99 in totals
    ]


async def trace(store: TelemetryStore, org: str | None, trace_id: str) -> list[Span]:
    """The spans of a trace by start; empty when there is none that the organization may see."""
    rows = await store.query(
        "spans", f"SELECT {_SPAN_COLUMNS} FROM {{rows}} WHERE trace_id = ? ORDER BY start, span_id", [trace_id]
    )
    spans = [_span(row) for row in rows]
    if org is None:
        return spans
    if not any(span.org == org for span in spans):
        return []
    return [span for span in spans if span.org in ("", org)]


async def traces(
    store: TelemetryStore, org: str | None, window: Window, wanted: TraceFilter, limit: int, offset: int
) -> list[TraceSummary]:
    """Traces, newest first."""
    rows = await store.query(
        "spans",
        """
        SELECT trace_id, arg_min(service, start), arg_min(name, start), min(start), max(start + duration) - min(start),
               count(*), count(*) FILTER (status = 'ERROR'), list_sort(list(DISTINCT service))
        FROM {rows} WHERE start >= ? AND start < ?
        GROUP BY trace_id
        HAVING (? IS NULL OR bool_or(org = ?)) AND (? = '' OR bool_or(service = ?)) AND (? = '' OR bool_or(name = ?))
           AND (NOT ? OR bool_or(status = 'ERROR')) AND max(start + duration) - min(start) >= ?
        ORDER BY 4 DESC, 1 LIMIT ? OFFSET ?
        """,
        [
            window.start,
            window.end,
            org,
            org,
            wanted.service,
            wanted.service,
            wanted.operation,
            wanted.operation,
            wanted.errors_only,
            int(wanted.min_duration_seconds * 1e9),
            limit,
            offset,
        ],
    )
    return [TraceSummary(*row) for row in rows]


async def logs(
    store: TelemetryStore, org: str | None, window: Window, wanted: LogFilter, limit: int, offset: int
) -> list[LogRecord]:
    """Log records, newest first."""
    rows = await store.query(
        "logs",
        """
        SELECT org, time, service, severity_number, severity, body, trace_id, span_id, attributes FROM {rows}
        WHERE time >= ? AND time < ? AND (? IS NULL OR org = ?) AND (? = '' OR service = ?)
          AND (? = '' OR trace_id = ?) AND (? = '' OR contains(lower(body), lower(?))) AND severity_number >= ?
        ORDER BY time DESC, span_id, body LIMIT ? OFFSET ?
        """,
        [
            window.start,
            window.end,
            org,
            org,
            wanted.service,
            wanted.service,
            wanted.trace_id,
            wanted.trace_id,
            wanted.text,
            wanted.text,
            wanted.min_severity_number,
            limit,
            offset,
        ],
    )
    return [LogRecord(*row[:8], attributes=orjson.loads(row[8])) for row in rows]


async def audit_entries(
    store: TelemetryStore, org: str | None, window: Window, wanted: AuditFilter, limit: int, offset: int
) -> list[LogRecord]:
    """The records of the audit interceptor, newest first."""
    rows = await store.query(
        "logs",
        """
        SELECT org, time, service, severity_number, severity, body, trace_id, span_id, attributes FROM {rows}
        WHERE time >= ? AND time < ? AND (? IS NULL OR org = ?)
          AND attributes ->> '$."argosy.audit"' = 'True'
          AND (? = '' OR attributes ->> '$."argosy.actor"' = ?) AND (? = '' OR attributes ->> '$."argosy.resource"' = ?)
        ORDER BY time DESC, span_id, body LIMIT ? OFFSET ?
        """,
        [
            window.start,
            window.end,
            org,
            org,
            wanted.actor,
            wanted.actor,
            wanted.resource,
            wanted.resource,
            limit,
            offset,
        ],
    )
    return [LogRecord(*row[:8], attributes=orjson.loads(row[8])) for row in rows]


async def metric(
    store: TelemetryStore, org: str | None, name: str, service: str, window: Window, step_seconds: int
) -> list[MetricPoint]:
    """One metric by service and step: sums add up, gauges and histograms are averaged."""
    step = step_seconds * 1_000_000_000
    rows = await store.query(
        "metrics",
        """
        SELECT '', time // ? * ? AS slot, service, name, kind,
               CASE kind WHEN 'sum' THEN sum(value) WHEN 'gauge' THEN avg(value)
                         ELSE sum(value) / greatest(sum(count), 1) END,
               sum(count), attributes
        FROM {rows}
        WHERE time >= ? AND time < ? AND name = ? AND (? = '' OR service = ?) AND (? IS NULL OR org = ?)
        GROUP BY slot, service, name, kind, attributes ORDER BY service, attributes, slot
        """,
        [step, step, window.start, window.end, name, service, service, org, org],
    )
    return [MetricPoint(*row[:7], attributes=orjson.loads(row[7])) for row in rows]


def _span(row: tuple[object, ...]) -> Span:
    *plain, attributes, events = row
    return Span(
        *plain,  # type: ignore[arg-type]
        attributes=orjson.loads(str(attributes)),
        events=[SpanEvent(**event) for event in orjson.loads(str(events))],
    )
