"""Every RPC of every service with requests that are right, hostile or no message: never the server's fault, always said
why, and the server lives on.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from libs.common.auth.policy import method_path
from libs.common.errors import DOMAIN, STATUS_DETAILS_KEY
from libs.common.testing.fuzzing import requests
from tests.fuzz.fuzz_mesh import FuzzMesh, methods, resident_bytes

pytestmark = pytest.mark.timeout(600)

METHODS = methods()
OTLP = [
    service.methods_by_name["Export"]
    for module in (trace_service_pb2, metrics_service_pb2, logs_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
# Streams that end only with their caller.
_WATCH_SECONDS = 0.25
# Far above what caches take, far below what a request kept by mistake would come to.
_GROWTH = 200 << 20
_LONGEST_MESSAGE = 1000
# The RPCs of which some example came through, and the part of all calls: less means that the requests only reach the
# validation. Some need what only another call gives: a draft, an upload, a run that has ended.
_REACHED = 0.55
_SUCCEEDED = 0.2
_FORBIDDEN = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


@pytest.fixture(scope="module")
def memory() -> dict[str, int]:
    return {}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Counter[str]]:
    """What the calls of each RPC came to: codes, and `OK`."""
    return defaultdict(Counter)


def label(value: Any) -> str:
    return value if isinstance(value, str) else value.full_name.removeprefix("argosy.")


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo in the details of an error."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:  # type: ignore[arg-type]
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    return None


def judge(error: grpc.aio.AioRpcError, method: MethodDescriptor, watching: bool) -> None:
    """Fails unless the error is the caller's fault and says so."""
    code = error.code()
    if watching and code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return
    info = info_of(error)
    assert code not in _FORBIDDEN, f"{code.name}: {error.details()}"
    assert info is not None, f"{code.name} without ErrorInfo: {error.details()}"
    assert info.reason
    assert info.domain == DOMAIN
    assert "Traceback" not in (error.details() or "")
    assert len(error.details() or "") < _LONGEST_MESSAGE


@pytest.mark.parametrize(("service", "method"), METHODS, ids=label)
@settings(settings.get_profile("argosy-fuzz"))
@given(data=st.data())
async def test_rpc(
    service: str,
    method: MethodDescriptor,
    data: st.DataObject,
    fuzz_mesh: FuzzMesh,
    memory: dict[str, int],
    outcomes: dict[str, Counter[str]],
) -> None:
    body = data.draw(requests(method, fuzz_mesh.names_for(method)))
    watching = method.server_streaming and method.name.startswith("Watch")
    try:
        answers = await fuzz_mesh.call(method, service, body, _WATCH_SECONDS if watching else 30)
    except grpc.aio.AioRpcError as error:
        outcomes[method.name][error.code().name] += 1
        judge(error, method, watching)
    else:
        outcomes[method.name]["OK"] += 1
        for answer in answers:
            fuzz_mesh.names_for(method).learn(GetMessageClass(method.output_type).FromString(answer))
    if method is METHODS[len(METHODS) // 3][1]:
        memory["early"] = resident_bytes()


def judge_telemetry(error: grpc.aio.AioRpcError) -> None:
    """The only thing that a sender can do wrong is the message."""
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error


@pytest.mark.parametrize("method", OTLP, ids=label)
@settings(settings.get_profile("argosy-fuzz"))
@given(data=st.data())
async def test_telemetry(method: MethodDescriptor, data: st.DataObject, fuzz_mesh: FuzzMesh) -> None:
    """OTLP is not Argosy's contract, so it has no ErrorInfo: it takes a message or says that it is none."""
    body = data.draw(requests(method, fuzz_mesh.names))
    export = fuzz_mesh.channel("aiops", "dataset").unary_unary(method_path(method))
    try:
        await export(body, timeout=30)
    except grpc.aio.AioRpcError as error:
        judge_telemetry(error)


async def test_servers_are_alive(
    fuzz_mesh: FuzzMesh, memory: dict[str, int], outcomes: dict[str, Counter[str]]
) -> None:
    for service in fuzz_mesh.services:
        assert await fuzz_mesh.serving(service), service
    growth = resident_bytes() - memory.get("early", resident_bytes())
    logging.getLogger(__name__).info("memory grew by %.1f MB", growth / 1e6)
    assert growth < _GROWTH


async def test_requests_reach_the_handlers(outcomes: dict[str, Counter[str]]) -> None:
    """The strategies are worth something: another proto or rule may not turn all requests into refusals."""
    calls = sum(counter.total() for counter in outcomes.values())
    succeeded = sum(counter["OK"] for counter in outcomes.values())
    reached = sum(1 for counter in outcomes.values() if counter["OK"])
    print(f"{calls} calls, {succeeded} succeeded, {reached} of {len(outcomes)} RPCs succeeded at least once")
    assert reached >= _REACHED * len(outcomes)
    assert succeeded >= _SUCCEEDED * calls
