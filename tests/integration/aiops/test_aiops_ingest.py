"""Telemetry on its way in, by OTLP/gRPC and OTLP/HTTP, and the questions that are asked about it."""

from __future__ import annotations

import asyncio
import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import orjson
import pytest
from argosy.aiops.v1 import telemetry_service_pb2 as pb
from argosy.aiops.v1 import telemetry_service_pb2_grpc
from argosy.identity.v1 import token_service_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.aiops.app import DEFINITION
from tests.conftest import free_port
from tests.integration.app.stubs import Add, Identity, served

PROTOBUF = {"content-type": "application/x-protobuf"}


def _pair(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def trace(number: int, *names: tuple[str, str], org: str = "acme") -> ExportTraceServiceRequest:
    """(service, operation) of a chain of spans, a millisecond each, just now."""
    request, now = ExportTraceServiceRequest(), time.time_ns()
    for position, (service, operation) in enumerate(names, 1):
        spans = request.resource_spans.add()
        spans.resource.attributes.append(_pair("service.name", service))
        spans.scope_spans.add().spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=position.to_bytes(8, "big"),
            parent_span_id=(position - 1).to_bytes(8, "big") if position > 1 else b"",
            name=operation,
            kind=2,
            start_time_unix_nano=now,
            end_time_unix_nano=now + 1_000_000,
            attributes=[_pair("argosy.org", org)],
        )
    return request


def line(body: str, org: str = "acme") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add()
    logs.resource.attributes.append(_pair("service.name", "dataset"))
    record = logs.scope_logs.add().log_records.add(
        time_unix_nano=time.time_ns(), severity_number=9, severity_text="INFO", body=AnyValue(string_value=body)
    )
    record.attributes.append(_pair("argosy.org", org))
    return request


class Rig:
    """Ways into a running aiops."""

    def __init__(self, mesh: Mesh, http: str) -> None:
        self.mesh, self.http = mesh, http
        channels = self.channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
        self.telemetry = channels.stub(telemetry_service_pb2_grpc.TelemetryServiceStub, "aiops")
        self._wire = mesh.channel("aiops", "dataset")
        self.spans, self.logs = TraceServiceStub(self._wire), LogsServiceStub(self._wire)

    async def bodies(self, org: str = "acme", **wanted: Any) -> list[str]:
        """Bodies of the log lines that an organization sees."""
        request = pb.ListLogsRequest(parent=f"orgs/{org}", page_size=1000, **wanted)
        return sorted(
            log.body for log in (await self.telemetry.ListLogs(request, metadata=self.mesh.metadata(org))).logs
        )

    async def post(self, path: str, body: bytes, key: str = "ak_acme", **headers: str) -> httpx.Response:
        sent = {**PROTOBUF, "authorization": f"Bearer {key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        async with httpx.AsyncClient(base_url=self.http, timeout=10, trust_env=False) as client:
            return await client.post(path, content=body, headers=sent)

    async def close(self) -> None:
        await self.channels.close()
        await self._wire.close()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh with an identity that knows the key `ak_<org>` of each organization."""
    mesh = Mesh(tmp_path)
    identity = Identity(mesh)
    add: dict[str, Add] = {"identity": lambda s: token_service_pb2_grpc.add_TokenServiceServicer_to_server(identity, s)}
    async with served(mesh, add):
        yield mesh


@pytest.fixture
async def rig(mesh: Mesh) -> AsyncIterator[Rig]:
    port = free_port()
    async with running_service(DEFINITION, mesh, http_listen=f"127.0.0.1:{port}"):
        rig = Rig(mesh, f"http://127.0.0.1:{port}")
        yield rig
        await rig.close()


async def test_what_comes_in_answers_questions(rig: Rig) -> None:
    await rig.spans.Export(trace(1, ("gateway", "POST /v1/chat"), ("app", "Chat"), ("replica", "Generate")), timeout=10)
    await rig.spans.Export(trace(2, ("gateway", "GET /v1/models")), timeout=10)
    await rig.logs.Export(line("a row was dropped"), timeout=10)
    metadata = rig.mesh.metadata()
    stats = await rig.telemetry.ListServiceStats(pb.ListServiceStatsRequest(parent="orgs/acme"), metadata=metadata)
    found = {service.service: service for service in stats.services}
    assert {name: service.requests for name, service in found.items()} == {"gateway": 2, "app": 1, "replica": 1}
    assert found["gateway"].p99_seconds == pytest.approx(0.001)
    name = f"orgs/acme/traces/{1:032x}"
    whole = await rig.telemetry.GetTrace(pb.GetTraceRequest(name=name), metadata=metadata)
    assert [span.service for span in whole.spans] == ["gateway", "app", "replica"]
    assert [span.parent_span_id for span in whole.spans] == ["", f"{1:016x}", f"{2:016x}"]
    listed = pb.ListTracesRequest(parent="orgs/acme", service="app")
    assert [t.trace_id for t in (await rig.telemetry.ListTraces(listed, metadata=metadata)).traces] == [f"{1:032x}"]
    assert await rig.bodies(text="dropped") == ["a row was dropped"]
    assert await rig.bodies(text="kept") == []


async def test_another_organization_finds_nothing(rig: Rig) -> None:
    await rig.spans.Export(trace(1, ("gateway", "GET")), timeout=10)
    await rig.logs.Export(line("ours"), timeout=10)
    with pytest.raises(ArgosyError) as raised:
        request = pb.GetTraceRequest(name=f"orgs/rival/traces/{1:032x}")
        await rig.telemetry.GetTrace(request, metadata=rig.mesh.metadata("rival"))
    assert raised.value.reason == "NOT_FOUND"
    assert await rig.bodies("rival") == []


async def test_outsiders_send_with_a_key_and_only_for_themselves(rig: Rig) -> None:
    assert (await rig.post("/v1/logs", line("theirs", org="acme").SerializeToString(), "ak_rival")).status_code == 200
    packed = gzip.compress(line("packed").SerializeToString())
    assert (await rig.post("/v1/logs", packed, content_encoding="gzip")).status_code == 200
    assert await rig.bodies("rival") == ["theirs"]
    assert await rig.bodies() == ["packed"]


async def test_http_refuses_what_it_cannot_take(rig: Rig) -> None:
    good = line("x").SerializeToString()
    bomb = gzip.compress(bytes(10 << 20))
    refused = {
        401: [await rig.post("/v1/logs", good, "nonsense"), await rig.post("/v1/logs", good, "ak")],
        404: [await rig.post("/v1/profiles", good)],
        415: [await rig.post("/v1/logs", b"{}", content_type="application/json")],
        400: [await rig.post("/v1/logs", b"\xff\xff"), await rig.post("/v1/logs", b"no", content_encoding="gzip")],
        413: [await rig.post("/v1/logs", bomb, content_encoding="gzip")],
    }
    for status, answers in refused.items():
        for answer in answers:
            assert answer.status_code == status, answer.text
            assert answer.json()["code"] == status
    assert await rig.bodies() == []


async def test_a_broken_request_is_its_senders_fault_alone(rig: Rig) -> None:
    """Requests that wait together are written together; one that cannot be read must not take the others along."""
    good = [line(f"{n:02d}").SerializeToString() for n in range(20)]
    both = [body for pair in zip(good, [b"\xff\xff"] * 20, strict=True) for body in pair]
    answers = await asyncio.gather(*(rig.post("/v1/logs", body) for body in both))
    assert [answer.status_code for answer in answers] == [200, 400] * 20
    assert await rig.bodies() == [f"{n:02d}" for n in range(20)]


async def test_impossible_times_do_not_block_the_store(rig: Rig) -> None:
    request = line("late")
    request.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano = 2**64 - 1
    await rig.logs.Export(request, timeout=10)
    await rig.logs.Export(line("now"), timeout=10)
    assert await rig.bodies() == ["now"]


@contextmanager
def full_disk(limit: int = 300) -> Generator[None]:
    """No file of this process grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


async def test_a_full_disk_refuses_and_heals(rig: Rig) -> None:
    await rig.logs.Export(line("before"), timeout=10)
    with full_disk():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rig.logs.Export(line("x" * 1000), timeout=10)
        answer = await rig.post("/v1/logs", line("y" * 1000).SerializeToString())
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.status_code == 503
    await rig.logs.Export(line("after"), timeout=10)
    assert await rig.bodies() == ["after", "before"]


async def test_kill_9_loses_nothing_that_was_acknowledged(mesh: Mesh, tmp_path: Path) -> None:
    port, http = free_port(), free_port()
    mesh.peers["aiops"] = f"127.0.0.1:{port}"
    environment = os.environ | {
        "ARGOSY_HOME": str(tmp_path),
        "ARGOSY_PKI_DIR": str(mesh.pki),
        "ARGOSY_PEERS": orjson.dumps({"identity": mesh.peers["identity"]}).decode(),
        "ARGOSY_OTLP": "",
        "ARGOSY_AIOPS_LISTEN": f"127.0.0.1:{port}",
        "ARGOSY_AIOPS_HTTP_LISTEN": f"127.0.0.1:{http}",
        # Files and journal change places all the time, so that kills meet both.
        "ARGOSY_AIOPS_SECONDS_IN_MEMORY": "0.2",
    }
    acknowledged: list[str] = []
    rig = Rig(mesh, f"http://127.0.0.1:{http}")

    async def send(life: int) -> None:
        for number in range(10_000):
            body = f"{life}-{number:04d}"
            await rig.logs.Export(line(body), timeout=20, wait_for_ready=not number)
            acknowledged.append(body)

    try:
        for life in range(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "services.aiops"], env=environment, stderr=subprocess.DEVNULL
            )
            try:
                sender = asyncio.ensure_future(send(life))
                async with asyncio.timeout(60):
                    while sum(body.startswith(f"{life}-") for body in acknowledged) < 100 and not sender.done():
                        await asyncio.sleep(0.02)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
            with pytest.raises(grpc.aio.AioRpcError):
                await sender
        assert len(acknowledged) >= 200
        async with running_service(DEFINITION, mesh):
            await rig.close()
            rig = Rig(mesh, "")
            found: list[str] = []
            for start in range(0, 10_000, 1000):
                part = await rig.bodies(text=f"-{start // 1000}")
                found += part
                if not part:
                    break
            kept = [body for body in found if body in set(acknowledged)]
            assert sorted(kept) == sorted(acknowledged)
    finally:
        await rig.close()
