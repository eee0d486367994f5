"""The interceptor chain: its order, and for each stage what goes wrong without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2

from libs.common.errors import STATUS_DETAILS_KEY, ArgosyError
from libs.common.rpc.interceptors import CHAIN, metrics
from tests.unit.common.rpc_server import TASK, Rig, rig, status_of

GET = "/argosy.common.v1.TaskService/GetTask"
CANCEL = "/argosy.common.v1.TaskService/CancelTask"
BODY = task_service_pb2.GetTaskRequest(name=TASK).SerializeToString()
CANCEL_BODY = task_service_pb2.CancelTaskRequest(name=TASK).SerializeToString()

Probe = Callable[[Rig, pytest.LogCaptureFixture], Awaitable[bool]]


def test_order_of_the_chain() -> None:
    assert [name for name, _ in CHAIN] == [
        "errors",
        "trace",
        "metrics",
        "admission",
        "deadline",
        "authenticate",
        "validate",
        "authorise",
        "audit",
    ]


async def failure(call: Awaitable[bytes]) -> grpc.aio.AioRpcError | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def reason(call: Awaitable[bytes]) -> str:
    error = await failure(call)
    return status_of(error).reason if error is not None else "ok"


async def hides_exception_texts(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    server.handlers.failure = RuntimeError("password=hunter2")
    error = await failure(server.call(GET, BODY))
    assert error is not None
    return error.code() is grpc.StatusCode.INTERNAL and "hunter2" not in f"{error.details()}{error.trailing_metadata()}"


async def gives_request_ids(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    server.handlers.failure = ArgosyError("NOT_FOUND", "no")
    metadata = (*server.mesh.metadata(), ("x-request-id", "req-1"))
    error = await failure(server.call(GET, BODY, metadata=metadata))
    assert error is not None
    return status_of(error).request_id == "req-1"


async def counts_calls(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    await server.call(GET, BODY)
    return any(attributes["rpc.method"] == "GetTask" for _, attributes in _Meter.recorded)


async def sheds_load(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    server.handlers.gate = asyncio.Event()
    server.host.load.max_calls = 1
    async with asyncio.TaskGroup() as group:
        first = group.create_task(server.call(GET, BODY))
        await server.handlers.entered.wait()
        server.handlers.entered.clear()
        second = group.create_task(reason(server.call(GET, BODY)))
        # Either it is refused, or it comes to the handler as well.
        entered = group.create_task(server.handlers.entered.wait())
        await asyncio.wait((second, entered), return_when=asyncio.FIRST_COMPLETED)
        entered.cancel()
        server.handlers.gate.set()
        await first
    return second.result() == "OVERLOADED"


async def demands_deadlines(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    return await reason(server.call(GET, BODY, timeout=None)) == "DEADLINE_MISSING"


async def demands_tokens(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    return await reason(server.call(GET, BODY, metadata=())) == "TOKEN_MISSING"


async def refuses_bad_fields(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    body = task_service_pb2.GetTaskRequest(name="nonsense").SerializeToString()
    return await reason(server.call(GET, body)) == "INVALID_FIELD"


async def refuses_weak_roles(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    metadata = server.mesh.metadata(role=options_pb2.ROLE_VIEWER)
    return await reason(server.call(CANCEL, CANCEL_BODY, metadata=metadata)) == "ROLE_MISSING"


async def records_changes(server: Rig, log: pytest.LogCaptureFixture) -> bool:
    with log.at_level(logging.INFO, "argosy.audit"):
        await server.call(CANCEL, CANCEL_BODY)
    return any(record.name == "argosy.audit" for record in log.records)


PROBES: dict[str, Probe] = {
    "errors": hides_exception_texts,
    "trace": gives_request_ids,
    "metrics": counts_calls,
    "admission": sheds_load,
    "deadline": demands_deadlines,
    "authenticate": demands_tokens,
    "validate": refuses_bad_fields,
    "authorise": refuses_weak_roles,
    "audit": records_changes,
}


class _Meter:
    recorded: list[tuple[float, dict[str, Any]]]

    def create_histogram(self, *_: str) -> _Meter:
        return self

    def record(self, value: float, attributes: dict[str, Any]) -> None:
        _Meter.recorded.append((value, attributes))


@pytest.fixture(autouse=True)
def meter(monkeypatch: pytest.MonkeyPatch) -> None:
    _Meter.recorded = []
    monkeypatch.setattr(metrics, "meter", _Meter)


def test_every_stage_has_a_probe() -> None:
    assert list(PROBES) == [name for name, _ in CHAIN]


@pytest.mark.parametrize("stage", PROBES)
async def test_stage_protects(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as server:
        assert await PROBES[stage](server, caplog)


@pytest.mark.parametrize("stage", PROBES)
async def test_without_the_stage_nothing_protects(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    async with rig(chain=[(name, wrap) for name, wrap in CHAIN if name != stage]) as server:
        assert not await PROBES[stage](server, caplog)


async def test_answers_and_knows_the_caller() -> None:
    async with rig() as server:
        answer = task_pb2.Task.FromString(await server.call(GET, BODY))
        call = server.handlers.calls[0]
    assert answer.creator == "orgs/acme/users/alice"
    assert call.org == "acme"
    assert 4 < call.deadline - asyncio.get_running_loop().time() <= 5


async def test_unary_stream() -> None:
    path = "/argosy.common.v1.TaskService/WatchTask"
    body = task_service_pb2.WatchTaskRequest(name=TASK).SerializeToString()
    async with rig() as server, server.mesh.channel("dataset", "gateway") as channel:
        call = channel.unary_stream(path)(body, timeout=5, metadata=server.mesh.metadata())
        events = [task_pb2.TaskEvent.FromString(event).sequence async for event in call]
    assert events == [1, 2, 3]


async def test_caller_that_goes_away_cancels_the_handler() -> None:
    async with rig() as server, server.mesh.channel("dataset", "gateway") as channel:
        server.handlers.gate = asyncio.Event()
        unary = channel.unary_unary(GET)(BODY, timeout=5, metadata=server.mesh.metadata())
        await server.handlers.entered.wait()
        unary.cancel()
        stream = channel.unary_stream("/argosy.common.v1.TaskService/WatchTask")(
            BODY, timeout=5, metadata=server.mesh.metadata()
        )
        await stream.read()
        await asyncio.sleep(0.05)
        stream.cancel()
        async with asyncio.timeout(10):
            while server.handlers.cancelled < 2 or server.host.load.calls or server.host.load.long:
                await asyncio.sleep(0.01)


async def test_long_deadline_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libs.common.auth.policy.DEFAULT_MAX_DEADLINE_SECONDS", 0.2)
    async with rig() as server:
        server.handlers.gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert await reason(server.call(GET, BODY, timeout=30)) == "DEADLINE_EXCEEDED"
        assert loop.time() - start < 2
        assert server.handlers.cancelled == 1


async def test_operator_needs_no_deadline() -> None:
    async with rig() as server:
        assert await reason(server.call(GET, BODY, identity="operator", timeout=None)) == "ok"


async def test_shed_call_says_when_to_come_back_and_health_is_exempt() -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with rig(max_calls=0) as server:
        error = await failure(server.call(GET, BODY))
        assert error is not None
        assert (status_of(error).reason, status_of(error).retry_after) == ("OVERLOADED", 1.0)
        async with server.mesh.channel("dataset") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            health = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)  # pyrefly: ignore[missing-attribute]
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_drain_ends_streams_and_lets_calls_finish() -> None:
    path = "/argosy.common.v1.TaskService/WatchTask"
    async with rig() as server, server.mesh.channel("dataset", "gateway") as channel:
        server.handlers.gate = asyncio.Event()
        stream = channel.unary_stream(path)(BODY, timeout=60, metadata=server.mesh.metadata())
        await stream.read()
        await server.handlers.entered.wait()
        server.handlers.entered.clear()
        async with asyncio.TaskGroup() as group:
            unary = group.create_task(server.call(GET, BODY))
            await server.handlers.entered.wait()
            drain = group.create_task(server.server.drain(3))
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await stream.read() is not grpc.aio.EOF:
                    pass
            assert not unary.done()
            server.handlers.gate.set()
            await drain
        assert status_of(ended.value).reason == "DRAINING"
        assert unary.result()


async def test_no_certificate_is_no_connection() -> None:
    async with rig() as server:
        error = await failure(server.call(GET, BODY, identity=None))
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"ttl": -60.0}, "TOKEN_EXPIRED"),
        ({"audience": ["training"]}, "TOKEN_AUDIENCE"),
        ({"org": "other"}, "NOT_FOUND"),
        ({"org": "system", "role": options_pb2.ROLE_SYSTEM}, "ok"),
        ({"role": options_pb2.ROLE_VIEWER}, "ok"),
    ],
)
async def test_tokens(claims: dict[str, Any], expected: str) -> None:
    async with rig() as server:
        assert await reason(server.call(GET, BODY, metadata=server.mesh.metadata(**claims))) == expected


async def test_revoked_token_is_refused_at_once() -> None:
    async with rig() as server:
        metadata = server.mesh.metadata(api_key="orgs/acme/apiKeys/k1")
        assert await reason(server.call(GET, BODY, metadata=metadata)) == "ok"
        assert server.host.verifier is not None
        server.host.verifier.revoke("orgs/acme/apiKeys/k1", server.mesh.clock.now().timestamp())
        assert await reason(server.call(GET, BODY, metadata=metadata)) == "TOKEN_REVOKED"


@pytest.mark.parametrize("token", ["Bearer ", "Bearer x.y.z", "Basic eDp5", "Bearer " + "a" * 9000])
async def test_what_is_no_token(token: str) -> None:
    async with rig() as server:
        assert await reason(server.call(GET, BODY, metadata=(("authorization", token),))) == "TOKEN_INVALID"


async def test_peer_methods_know_the_service_by_its_certificate() -> None:
    from argosy.identity.v1 import token_service_pb2

    path = "/argosy.identity.v1.TokenService/IssueToken"
    body = token_service_pb2.IssueTokenRequest(org="orgs/acme").SerializeToString()
    async with rig() as server:
        answer = token_service_pb2.Token.FromString(await server.call(path, body, identity="eval", metadata=()))
        assert (answer.org, answer.subject) == ("acme", "services/eval")
        for outsider in ("operator", "identity"):
            assert await reason(server.call(path, body, identity=outsider, metadata=())) == "PEER_NOT_ALLOWED"


async def test_public_methods_need_no_token_and_do_not_read_one() -> None:
    path = "/argosy.identity.v1.TokenService/GetJwks"
    async with rig() as server:
        for metadata in ((), (("authorization", "Bearer rubbish"),)):
            assert await reason(server.call(path, b"", metadata=metadata)) == "ok"


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\n\x02\xff\xfe"])
async def test_body_that_does_not_parse(body: bytes) -> None:
    async with rig() as server:
        assert await reason(server.call(GET, body)) == "BODY_INVALID"


async def test_refused_changes_are_audited_too(caplog: pytest.LogCaptureFixture) -> None:
    async with rig() as server:
        with caplog.at_level(logging.INFO, "argosy.audit"):
            await reason(server.call(CANCEL, CANCEL_BODY, metadata=server.mesh.metadata(role=1)))
    records = [record.__dict__ for record in caplog.records if record.name == "argosy.audit"]
    assert [(r["argosy.outcome"], r["argosy.actor"]) for r in records] == [("ROLE_MISSING", "orgs/acme/users/alice")]


async def test_every_error_carries_its_details() -> None:
    async with rig() as server:
        server.handlers.failure = ArgosyError("STATE_CONFLICT", "no", metadata={"name": TASK})
        error = await failure(server.call(GET, BODY))
    assert error is not None
    assert any(key == STATUS_DETAILS_KEY for key, _ in error.trailing_metadata() or ())
    assert status_of(error).metadata == {"name": TASK}
    assert status_of(error).request_id
