"""Log lines: one JSON object a line on standard error, and the same records to the telemetry receiver.

A line never carries a secret, a prompt or an answer: fields whose name says that they are secret are masked, and
nothing logs contents unless the organization turned that on.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from typing import Any

import orjson
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from libs.common.obs.sender import OtlpSender

_SECRET = re.compile(r"secret|password|token$|authorization|^api_key$|private|payload", re.IGNORECASE)
_MASK = "***"
# https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-severitynumber
_SEVERITY = {"DEBUG": 5, "INFO": 9, "WARNING": 13, "ERROR": 17, "CRITICAL": 21}
_BODY_LIMIT = 8192
_QUEUE_LIMIT = 4096
_FLUSH_SECONDS = 1.0


# What the standard library itself puts on a record; everything else came by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def attributes_of(record: logging.LogRecord) -> dict[str, str]:
    """What a line was logged with (`extra=`), secrets masked, values as text."""
    given = vars(record).items()
    return {k: _MASK if _SECRET.search(k) else str(v) for k, v in given if k not in _STANDARD}


def _body(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text = f"{text}\n{''.join(traceback.format_exception(*record.exc_info))}"
    return text[:_BODY_LIMIT]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, severity, service, role, body, trace and span ids, attributes."""

    def __init__(self, service: str, role: str) -> None:
        super().__init__()
        self._service = service
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "service": self._service,
            "role": self._role,
            "logger": record.name,
            "body": _body(record),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
            line["span_id"] = f"{context.span_id:016x}"
        attributes = attributes_of(record)
        if attributes:
            line["attributes"] = attributes
        return orjson.dumps(line).decode()


class OtlpLogHandler(logging.Handler):
    """Queues records and sends them each second from a thread. A full queue drops the oldest and counts it.

    `close` is the standard library's: `logging.config.dictConfig`, which vLLM calls when it is imported, closes every
    handler that there is, and those that are still attached must go on. `stop` ends the thread.
    """

    def __init__(self, sender: OtlpSender, resource: dict[str, str]) -> None:
        super().__init__()
        self._sender = sender
        self._resource = Resource(attributes=[_pair(k, v) for k, v in resource.items()])
        self._queue: deque[LogRecord] = deque(maxlen=_QUEUE_LIMIT)
        self._wake = threading.Event()
        self._stop = False
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="otlp-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("grpc", "opentelemetry")):
            return  # what the sender itself provokes must not feed the sender
        if len(self._queue) == _QUEUE_LIMIT:
            self._sender.dropped["logs"] += 1
        self._queue.append(self._encode(record))

    def flush(self) -> None:
        with self._sending:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), 512))]
                scope = ScopeLogs(scope=InstrumentationScope(name="argosy"), log_records=batch)
                request = ExportLogsServiceRequest(
                    resource_logs=[ResourceLogs(resource=self._resource, scope_logs=[scope])]
                )
                if not self._sender.send("logs", request, len(batch)):
                    return

    def stop(self) -> None:
        """Sends what is queued and ends the thread."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=6)

    def _run(self) -> None:
        while not self._stop:
            self._wake.wait(_FLUSH_SECONDS)
            self.flush()

    def _encode(self, record: logging.LogRecord) -> LogRecord:
        nanos = int(record.created * 1e9)
        encoded = LogRecord(
            time_unix_nano=nanos,
            observed_time_unix_nano=nanos,
            severity_number=_SEVERITY.get(record.levelname, 9),  # type: ignore[arg-type]
            severity_text=record.levelname,
            body=AnyValue(string_value=_body(record)),
            attributes=[_pair("logger", record.name), *(_pair(k, v) for k, v in attributes_of(record).items())],
        )
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            encoded.trace_id = context.trace_id.to_bytes(16, "big")
            encoded.span_id = context.span_id.to_bytes(8, "big")
        return encoded


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def setup_logging(service: str, role: str, level: int = logging.INFO) -> None:
    """Sends all log lines of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "httpcore", "uvicorn.access", "alembic.runtime.migration", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
