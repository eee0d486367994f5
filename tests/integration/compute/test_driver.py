"""The Ray driver child: named actors, refusals, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from libs.common.testing.ray import RunningRay, ray_head
from libs.compute.client import CarrierReport, RayDriver
from libs.compute.context import EngineError
from libs.compute.errors import ComputeLost, ComputeTimeout, ComputeUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

COUNTER = "libs.common.testing.engines:Counter"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            service = {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"]
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[Receiver, int]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    receiver = Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, port
    server.stop(0)


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running:
        yield running


@pytest.fixture(scope="module")
async def driver(ray: RunningRay, receiver: tuple[Receiver, int]) -> AsyncIterator[RayDriver]:
    otlp = f"127.0.0.1:{receiver[1]}"
    async with RayDriver(ray.address, service="test", otlp=otlp, environment=ray.environment) as driver:
        yield driver


async def finished(driver: RayDriver, name: str) -> CarrierReport:
    async with asyncio.timeout(40):
        while (report := await driver.poll(name)).state in ("pending", "running"):
            await asyncio.sleep(0.1)
    return report


async def test_a_named_actor_outlives_its_driver(ray: RunningRay, driver: RayDriver) -> None:
    await driver.start_actor("counter", COUNTER, {"start": 5}, {"num_cpus": 0.1})
    assert await driver.call("counter", "add", {"amount": 2}, timeout=30) == 7
    pid = await driver.call("counter", "pid")
    assert await driver.alive("counter")
    await driver.start_actor("counter", COUNTER, {"start": 0}, {"num_cpus": 0.1})
    assert await driver.call("counter", "add", {"amount": 1}) == 8, "the same name finds the same actor"

    assert driver.child_pid is not None
    os.kill(driver.child_pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert await driver.call("counter", "add", {"amount": 1}) == 9, "the next child finds it again"
    assert await driver.call("counter", "pid") == pid

    with pytest.raises(EngineError, match="broken") as error:
        await driver.call("counter", "fail")
    assert error.value.reason == "STATE_CONFLICT"
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ComputeTimeout):
        await driver.call("counter", "pid", timeout=1)
    os.kill(pid, signal.SIGCONT)

    await driver.kill("counter")
    await driver.kill("counter")
    with pytest.raises(ComputeLost):
        await driver.call("counter", "pid")
    assert not await driver.alive("counter")


async def test_an_actor_sees_no_secret_of_its_service(
    driver: RayDriver, monkeypatch: pytest.MonkeyPatch, ray: RunningRay, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARGOSY_TEST_DATABASE_URL", "postgresql://user:canary@host/db")
    async with RayDriver(ray.address, service="test", environment=ray.environment) as other:
        await other.start_actor("spy", COUNTER, {"start": 0}, {"num_cpus": 0.1})
        pid = await other.call("spy", "pid", timeout=30)
        assert other.child_pid is not None
        for process in (pid, other.child_pid):
            assert b"canary" not in Path(f"/proc/{process}/environ").read_bytes()
        await other.kill("spy")


async def test_the_span_of_the_engine_continues_the_trace(driver: RayDriver, receiver: tuple[Receiver, int]) -> None:
    trace_id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    await driver.submit(
        "argosy-test-traced",
        "libs.common.testing.engines:interrupted",
        {},
        kind="test.interrupted",
        attempt=3,
        resources={"num_cpus": 0.1},
        traceparent=f"00-{trace_id}-{parent}-01",
    )
    report = await finished(driver, "argosy-test-traced")
    assert report.result == {"attempt": 3}
    # The carrier has sent its span before it says that it has ended: killing it now loses nothing.
    [(service, span)] = [(service, span) for service, span in receiver[0].spans if span.name.startswith("engine")]
    assert (service, span.name) == ("ray", "engine test.interrupted")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, parent)
    await driver.dismiss("argosy-test-traced")


async def test_what_is_not_there_is_lost(driver: RayDriver) -> None:
    assert (await driver.poll("argosy-test-never")).state == "lost"
    await driver.cancel("argosy-test-never")
    await driver.dismiss("argosy-test-never")


async def test_an_engine_that_cannot_be_loaded_fails(driver: RayDriver) -> None:
    await driver.submit("argosy-test-missing", "libs.common.testing.engines:nothing", {}, resources={"num_cpus": 0.1})
    report = await finished(driver, "argosy-test-missing")
    assert report.state == "failed"
    assert report.error is not None
    assert report.error["reason"] == "INTERNAL"
    await driver.dismiss("argosy-test-missing")


async def test_an_idle_child_goes_and_comes_back(ray: RunningRay) -> None:
    async with RayDriver(ray.address, environment=ray.environment, idle_seconds=0.5) as driver:
        await driver.list()
        pid = driver.child_pid
        assert pid is not None
        async with asyncio.timeout(10):
            while Path(f"/proc/{pid}").exists():
                await asyncio.sleep(0.1)
        await driver.list()
        assert driver.child_pid not in (None, pid)


async def test_without_the_token_a_driver_is_refused(ray: RunningRay, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    assert ray.head.token_file.stat().st_mode & 0o777 == 0o600
    stranger = {
        **ray.environment,
        "RAY_AUTH_TOKEN_PATH": str(wrong),
        # Ray asks again for 20 s before it gives up.
        "RAY_NUM_REDIS_GET_RETRIES": "2",
    }
    async with RayDriver(ray.address, environment=stranger) as driver:
        with pytest.raises(ComputeUnavailable):
            await driver.list()


async def test_no_head_is_told_at_once() -> None:
    async with RayDriver("127.0.0.1:9") as driver:
        started = time.monotonic()
        with pytest.raises(ComputeUnavailable):
            await driver.list()
        assert time.monotonic() - started < 5


async def test_closing_leaves_no_process_and_no_thread(ray: RunningRay) -> None:
    async with RayDriver(ray.address, environment=ray.environment) as driver:
        await driver.list()
        pid = driver.child_pid
    assert not Path(f"/proc/{pid}").exists()
    # It reads the end of what the process said a moment later.
    async with asyncio.timeout(5):
        while f"ray-driver-{pid}" in [thread.name for thread in threading.enumerate()]:
            await asyncio.sleep(0.05)
