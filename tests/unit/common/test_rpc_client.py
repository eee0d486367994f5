"""The client: deadlines, errors, retries within a budget, request ids, and a certificate that changes under load."""

from __future__ import annotations

import asyncio
import datetime
import time

import pytest
from argosy.common.v1 import task_service_pb2, task_service_pb2_grpc
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.config import CommonSettings
from libs.common.errors import ArgosyError
from libs.common.rpc.call import CURRENT, Call
from libs.common.rpc.client import Channels, RetryBudget
from tests.unit.common.rpc_server import TASK, Rig, rig

REQUEST = task_service_pb2.GetTaskRequest(name=TASK)
Stub = task_service_pb2_grpc.TaskServiceStub


def channels(server: Rig, name: str = "gateway") -> Channels:
    return Channels(CommonSettings(peers=server.mesh.peers, pki_dir=server.mesh.pki), name)


def parent(seconds: float) -> Call[object]:
    """A call that this task serves, which has that long to live."""
    call: Call[object] = Call("/test", None, None)  # type: ignore[arg-type]
    call.deadline = time.monotonic() + seconds
    call.request_id = "parent-1"
    return call


async def test_errors_come_back_as_they_were_raised() -> None:
    async with rig() as server:
        ways = channels(server)
        stub = ways.stub(Stub, "dataset")
        server.handlers.failure = ArgosyError("STATE_CONFLICT", "It runs.", metadata={"name": TASK, "state": "RUNNING"})
        with pytest.raises(ArgosyError) as raised:
            await stub.GetTask(REQUEST, metadata=server.mesh.metadata())
        await ways.close()
    assert (raised.value.reason, raised.value.message) == ("STATE_CONFLICT", "It runs.")
    assert raised.value.metadata == {"name": TASK, "state": "RUNNING"}


async def test_deadline_is_the_shorter_of_its_own_and_the_parents() -> None:
    async with rig() as server:
        ways = channels(server)
        stub = ways.stub(Stub, "dataset")
        for timeout, left, expected in ((None, 100, 10), (3, 100, 3), (None, 2, 1.95)):
            token = CURRENT.set(parent(left))
            start = time.monotonic()
            await stub.GetTask(REQUEST, timeout=timeout, metadata=server.mesh.metadata())
            CURRENT.reset(token)
            assert server.handlers.calls[-1].deadline - start == pytest.approx(expected, abs=0.3)
            assert server.handlers.calls[-1].request_id == "parent-1"
        token = CURRENT.set(parent(0.01))
        with pytest.raises(ArgosyError) as raised:
            await stub.GetTask(REQUEST, metadata=server.mesh.metadata())
        CURRENT.reset(token)
        await ways.close()
    assert raised.value.reason == "DEADLINE_EXCEEDED"


async def test_repeatable_calls_are_repeated_and_keep_their_request_id() -> None:
    async with rig() as server:
        ways = channels(server)
        stub = ways.stub(Stub, "dataset")
        server.handlers.failure = ArgosyError("DATABASE_UNAVAILABLE", "away")
        with pytest.raises(ArgosyError):
            await stub.CancelTask(task_service_pb2.CancelTaskRequest(name=TASK), metadata=server.mesh.metadata())
        assert len(server.handlers.calls) == 4
        server.handlers.failure = None
        request = task_service_pb2.CancelTaskRequest(name=TASK)
        answer = await stub.CancelTask(request, metadata=server.mesh.metadata())
        assert len(answer.message) == 36
        assert not request.request_id, "the caller's own message stays as it is"
        await ways.close()


@pytest.mark.parametrize("reason", ["NOT_FOUND", "OVERLOADED", "CONFLICT", "PEER_UNAVAILABLE", "INTERNAL"])
async def test_other_failures_are_not_repeated(reason: str) -> None:
    async with rig() as server:
        ways = channels(server)
        server.handlers.failure = ArgosyError(reason, "no")
        with pytest.raises(ArgosyError):
            await ways.stub(Stub, "dataset").GetTask(REQUEST, metadata=server.mesh.metadata())
        await ways.close()
    assert len(server.handlers.calls) == 1


async def test_calls_without_request_id_are_not_repeated() -> None:
    async with rig() as server:
        ways = channels(server, "eval")
        await server.server.raw.stop(0)
        stub = ways.stub(token_service_pb2_grpc.TokenServiceStub, "dataset")
        with pytest.raises(ArgosyError) as raised:
            await stub.IssueToken(token_service_pb2.IssueTokenRequest(org="orgs/acme"), timeout=0.3)
        await ways.close()
    assert raised.value.reason in ("DEADLINE_EXCEEDED", "PEER_UNAVAILABLE")


def test_budget_stops_a_storm() -> None:
    budget = RetryBudget()
    assert [budget.failed() for _ in range(6)] == [True, True, True, True, False, False]
    for _ in range(30):
        budget.succeeded()
    assert budget.failed()


async def test_waits_for_a_peer_that_restarts() -> None:
    async with rig() as server:
        ways = channels(server)
        address = server.mesh.peers["dataset"]
        await server.server.raw.stop(0)

        async def later() -> None:
            await asyncio.sleep(0.3)
            async with rig_at(address, server):
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(later())
            answer = await ways.stub(Stub, "dataset").GetTask(REQUEST, metadata=server.mesh.metadata())
        await ways.close()
    assert answer.name == TASK


def rig_at(address: str, old: Rig):  # type: ignore[no-untyped-def]
    """The same service again on the same port."""
    from contextlib import asynccontextmanager

    from libs.common.rpc.server import Server
    from tests.unit.common.rpc_server import TASKS

    @asynccontextmanager
    async def again():  # type: ignore[no-untyped-def]
        server = Server(old.host, old.mesh.certificates("dataset"), address)
        server.mount([TASKS], [old.handlers])
        await server.start()
        yield server
        await server.raw.stop(0)

    return again()


async def test_streams_end_with_the_error_of_the_peer() -> None:
    async with rig() as server:
        ways = channels(server)
        stub = ways.stub(Stub, "dataset")
        request = task_service_pb2.WatchTaskRequest(name=TASK)
        seen = [event.sequence async for event in stub.WatchTask(request, metadata=server.mesh.metadata())]
        assert seen == [1, 2, 3]
        with pytest.raises(ArgosyError) as raised:
            async for _ in stub.WatchTask(request):
                pass
        await ways.close()
    assert raised.value.reason == "TOKEN_MISSING"


async def test_service_tokens_are_kept_until_shortly_before_their_end() -> None:
    asked: list[tuple[str, int]] = []

    async def source(org: str, subject: str, role: int, audience: tuple[str, ...]) -> tuple[str, float]:
        asked.append((org, role))
        return f"token-{len(asked)}", time.time() + (300 if org == "acme" else 30)

    async with rig() as server:
        ways = Channels(CommonSettings(peers=server.mesh.peers, pki_dir=server.mesh.pki), "eval", source)
        assert [await ways.service_token("acme") for _ in range(3)] == ["token-1"] * 3
        assert [await ways.service_token("short") for _ in range(2)] == ["token-2", "token-3"]
        assert await ways.as_service("acme") == (("authorization", "Bearer token-1"),)
        await ways.close()


async def test_certificates_rotate_under_load_on_both_sides() -> None:
    """Certificates that live three seconds, used for seven: every call succeeds on both sides of each change."""
    ttl = datetime.timedelta(seconds=3)
    async with rig() as server:
        for name in ("dataset", "gateway"):
            server.mesh.ca.issue(name, ttl)
        await asyncio.sleep(0.1)
        ways = channels(server)
        stub = ways.stub(Stub, "dataset")
        first = ways._certificates.current.certificate
        end = time.monotonic() + 7
        calls = 0

        async def renew() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(0.7)
                for name in ("dataset", "gateway"):
                    server.mesh.ca.issue(name, ttl)

        async def load() -> None:
            nonlocal calls
            while time.monotonic() < end:
                await stub.GetTask(REQUEST, metadata=server.mesh.metadata())
                calls += 1
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            group.create_task(renew())
            group.create_task(load())
        assert ways._certificates.current.certificate != first
        # A new connection proves that the server shows its new certificate: the first has expired long ago.
        fresh = channels(server)
        await fresh.stub(Stub, "dataset").GetTask(REQUEST, metadata=server.mesh.metadata())
        await fresh.close()
        await ways.close()
    assert calls > 100
