from __future__ import annotations

import json
import logging
import time
import weakref
from concurrent import futures

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from libs.common.obs import extract, inject
from libs.common.obs.logs import JsonFormatter, OtlpLogHandler
from libs.common.obs.sender import OtlpSender


def _record(message: str, **attributes: object) -> logging.LogRecord:
    record = logging.LogRecord("t", logging.INFO, __file__, 1, message, (), None)
    vars(record).update(attributes)
    return record


class _Receiver(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[logs_service_pb2.ExportLogsServiceRequest] = []

    def Export(self, request, context):
        self.requests.append(request)
        return logs_service_pb2.ExportLogsServiceResponse()


@pytest.fixture
def receiver():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = _Receiver()
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0)


def test_a_line_is_json_and_masks_secrets() -> None:
    line = json.loads(JsonFormatter("dataset", "rpc").format(_record("hello", api_key="ak_1", rows=3)))
    assert line["service"] == "dataset"
    assert line["attributes"] == {"api_key": "***", "rows": "3"}


def test_a_line_carries_the_trace() -> None:
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        line = json.loads(JsonFormatter("dataset", "rpc").format(_record("hello")))
        assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_context_survives_a_carrier() -> None:
    tracer = TracerProvider().get_tracer("t")
    with tracer.start_as_current_span("s") as span:
        carrier = inject()
    again = trace.get_current_span(extract(carrier)).get_span_context()
    assert again.trace_id == span.get_span_context().trace_id


def test_records_reach_the_receiver(receiver) -> None:
    servicer, endpoint = receiver
    sender = OtlpSender(endpoint, None, "dataset")
    handler = OtlpLogHandler(sender, {"service.name": "dataset"})
    handler.emit(_record("one"))
    handler.stop()
    bodies = [
        r.body.string_value
        for q in servicer.requests
        for rl in q.resource_logs
        for s in rl.scope_logs
        for r in s.log_records
    ]
    assert bodies == ["one"]
    assert sender.sent["logs"] == 1


def test_records_are_sent_after_somebody_has_configured_logging(receiver) -> None:
    servicer, endpoint = receiver
    handler = OtlpLogHandler(OtlpSender(endpoint, None, "dataset"), {"service.name": "dataset"})
    logging.shutdown([weakref.ref(handler)])  # what logging.config.dictConfig does with every handler
    handler.emit(_record("after"))
    deadline = time.monotonic() + 10
    while not servicer.requests and time.monotonic() < deadline:
        time.sleep(0.05)
    assert servicer.requests
    handler.stop()


def test_a_receiver_that_is_away_drops_and_counts() -> None:
    sender = OtlpSender("127.0.0.1:1", None, "dataset")
    handler = OtlpLogHandler(sender, {"service.name": "dataset"})
    handler.emit(_record("lost"))
    handler.stop()
    assert sender.dropped["logs"] == 1
