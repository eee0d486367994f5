"""A whole service on real PostgreSQL: calls that happen once, a database that goes and comes back, an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from argosy.common.v1 import task_pb2, task_service_pb2, task_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text

from deploy.local import postgres
from libs.common.config import CommonSettings
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.rpc.bind import BindingError
from libs.common.rpc.call import Call
from libs.common.rpc.client import Channels
from libs.common.service import RunningService, Runtime, ServiceDefinition
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service

TASKS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
TASK = "orgs/acme/dataset/tasks/t1"
MIGRATION = """
from alembic import op
from libs.common.db.infrastructure import create_infrastructure, enable_row_level_security
revision = "0001"
down_revision = None


def upgrade():
    create_infrastructure(op)
    op.execute("CREATE TABLE counters (org text PRIMARY KEY, value integer NOT NULL)")
    enable_row_level_security(op, "counters")
"""


@dataclass
class App:
    """What the test looks at."""

    runs: int = 0
    failures: int = 0
    gate: asyncio.Event | None = None


class Handlers:
    """CancelTask counts in the database; GetTask reads the count."""

    async def cancel_task(self, request: task_service_pb2.CancelTaskRequest, call: Call[App]) -> task_pb2.Task:
        call.deps.runs += 1
        connection = await call.uow.connection()
        row = {"org": call.org}
        await connection.execute(
            text("INSERT INTO counters VALUES (:org, 1) ON CONFLICT (org) DO UPDATE SET value = counters.value + 1"),
            row,
        )
        if call.deps.failures:
            call.deps.failures -= 1
            raise DomainError("CONFLICT", "somebody was faster", name=request.name)
        value = (await connection.execute(text("SELECT value FROM counters WHERE org = :org"), row)).scalar_one()
        return task_pb2.Task(name=request.name, attempt=value)

    async def get_task(self, request: task_service_pb2.GetTaskRequest, call: Call[App]) -> task_pb2.Task:
        if call.deps.gate is not None:
            await call.deps.gate.wait()
        connection = await call.uow.connection()
        value = (await connection.execute(text("SELECT coalesce(sum(value), 0) FROM counters"))).scalar_one()
        return task_pb2.Task(name=request.name, attempt=value)

    async def retry_task(self, request: task_service_pb2.RetryTaskRequest, call: Call[App]) -> task_pb2.Task:
        await self.cancel_task(task_service_pb2.CancelTaskRequest(name=request.name), call)
        raise ArgosyError("STATE_CONFLICT", "not now")

    async def list_tasks(self, request: Any, call: Call[App]) -> task_service_pb2.ListTasksResponse:
        connection = await call.uow.connection()
        await connection.execute(text("DELETE FROM counters"))
        return task_service_pb2.ListTasksResponse()

    async def list_task_logs(self, request: Any, call: Call[App]) -> Any: ...

    async def list_task_metrics(self, request: Any, call: Call[App]) -> Any: ...

    async def watch_task(self, request: Any, call: Call[App]) -> AsyncIterator[task_pb2.TaskEvent]:
        yield task_pb2.TaskEvent(sequence=1)
        await asyncio.Event().wait()


@dataclass
class Rig:
    """A running service and the ways into it."""

    service: RunningService[App]
    mesh: Mesh
    channels: Channels

    @property
    def app(self) -> App:
        assert self.service.app is not None
        return self.service.app

    @property
    def stub(self) -> task_service_pb2_grpc.TaskServiceStub:
        return self.channels.stub(task_service_pb2_grpc.TaskServiceStub, "dataset")

    async def cancel(self, request_id: str, name: str = TASK, **claims: Any) -> int:
        """Counts once more; the count after it."""
        request = task_service_pb2.CancelTaskRequest(name=name, request_id=request_id)
        return (await self.stub.CancelTask(request, metadata=self.mesh.metadata(**claims))).attempt

    async def count(self, **claims: Any) -> int:
        """The count that the organization sees."""
        request = task_service_pb2.GetTaskRequest(name=TASK.replace("acme", claims.get("org", "acme")))
        return (await self.stub.GetTask(request, metadata=self.mesh.metadata(**claims))).attempt

    async def health(self) -> int:
        async with self.mesh.channel("dataset") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status  # pyrefly: ignore[missing-attribute]


@pytest.fixture
def definition(tmp_path: Path) -> ServiceDefinition[App]:
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "versions" / "0001_initial.py").write_text(MIGRATION)

    async def build(runtime: Runtime) -> App:
        return App()

    return ServiceDefinition("dataset", build, [TASKS], [Handlers()], migrations=tmp_path / "migrations")


@asynccontextmanager
async def running(
    definition: ServiceDefinition[App], folder: Path, database_url: str, nats_url: str = ""
) -> AsyncGenerator[Rig]:
    mesh = Mesh(folder / "mesh")
    async with running_service(definition, mesh, database_url=database_url, nats_url=nats_url) as service:
        channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
        try:
            yield Rig(service, mesh, channels)
        finally:
            await channels.close()


@pytest.fixture
async def rig(definition: ServiceDefinition[App], tmp_path: Path, database_url: str) -> AsyncIterator[Rig]:
    async with running(definition, tmp_path, database_url) as started:
        yield started


async def test_same_request_id_happens_once(rig: Rig) -> None:
    assert [await rig.cancel("r1") for _ in range(3)] == [1, 1, 1]
    assert (await rig.cancel("r2"), rig.app.runs) == (2, 2)
    with pytest.raises(ArgosyError) as raised:
        await rig.cancel("r1", name="orgs/acme/dataset/tasks/other")
    assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_same_request_id_at_once_happens_once(rig: Rig) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(rig.cancel("same")) for _ in range(8)]
    assert [call.result() for call in calls] == [1] * 8
    assert await rig.count() == 1


async def test_conflicts_are_tried_again_from_the_beginning(rig: Rig) -> None:
    rig.app.failures = 2
    assert (await rig.cancel("r1"), rig.app.runs) == (1, 3)
    rig.app.failures = 3
    with pytest.raises(ArgosyError) as raised:
        await rig.cancel("r2")
    assert raised.value.reason == "CONFLICT"
    assert await rig.count() == 1


async def test_a_failed_call_leaves_nothing(rig: Rig) -> None:
    request = task_service_pb2.RetryTaskRequest(name=TASK, request_id="r1")
    for _ in range(2):
        with pytest.raises(ArgosyError) as raised:
            await rig.stub.RetryTask(request, metadata=rig.mesh.metadata())
        assert raised.value.reason == "STATE_CONFLICT"
    assert (await rig.count(), rig.app.runs) == (0, 2)


async def test_reads_cannot_write(rig: Rig) -> None:
    await rig.cancel("r1")
    with pytest.raises(ArgosyError):
        await rig.stub.ListTasks(
            task_service_pb2.ListTasksRequest(parent="orgs/acme/dataset"), metadata=rig.mesh.metadata()
        )
    assert await rig.count() == 1


async def test_organizations_do_not_see_each_other(rig: Rig) -> None:
    await rig.cancel("r1")
    assert await rig.count(org="other") == 0
    assert await rig.cancel("r1", name=TASK.replace("acme", "other"), org="other") == 1
    assert await rig.count() == 1


async def test_health_follows_the_database_and_calls_heal(rig: Rig, postgres_server: postgres.Server) -> None:
    await rig.cancel("r1")
    assert await rig.health() == health_pb2.HealthCheckResponse.SERVING
    postgres_server.stop()
    try:
        with pytest.raises(ArgosyError) as raised:
            await rig.count()
        assert raised.value.reason == "DATABASE_UNAVAILABLE"
        await eventually(rig, health_pb2.HealthCheckResponse.NOT_SERVING)
    finally:
        postgres_server.start()
    await eventually(rig, health_pb2.HealthCheckResponse.SERVING)
    assert await rig.count() == 1


async def eventually(rig: Rig, status: int) -> None:
    async with asyncio.timeout(20):
        while await rig.health() != status:
            await asyncio.sleep(0.1)


async def test_bus_is_not_needed_to_be_ready(
    definition: ServiceDefinition[App], tmp_path: Path, database_url: str
) -> None:
    async with running(definition, tmp_path, database_url, "nats://127.0.0.1:1") as started:
        assert await started.cancel("r1") == 1


async def test_drain(definition: ServiceDefinition[App], tmp_path: Path, database_url: str) -> None:
    async with running(definition, tmp_path, database_url) as started:
        started.app.gate = asyncio.Event()
        request = task_service_pb2.WatchTaskRequest(name=TASK)
        watch = started.stub.WatchTask(request, metadata=started.mesh.metadata())
        assert (await anext(aiter(watch))).sequence == 1
        async with asyncio.TaskGroup() as group:
            call = group.create_task(started.count())
            await asyncio.sleep(0.2)
            started.service.stop()
            with pytest.raises(ArgosyError) as raised:
                await anext(aiter(watch))
            assert raised.value.reason == "DRAINING"
            started.app.gate.set()
        assert call.result() == 0


async def test_a_service_that_does_not_fit_its_proto_does_not_start(
    definition: ServiceDefinition[App], tmp_path: Path, database_url: str
) -> None:
    class Missing(Handlers):
        get_task = None  # type: ignore[assignment]

    broken = ServiceDefinition("dataset", definition.build, [TASKS], [Missing()], migrations=definition.migrations)
    with pytest.raises(BindingError, match="GetTask has no handler"):
        async with running(broken, tmp_path, database_url):
            pass


async def test_waits_for_a_database_that_is_away_at_the_start(
    definition: ServiceDefinition[App], tmp_path: Path, database_url: str, postgres_server: postgres.Server
) -> None:
    postgres_server.stop()

    async def come_back() -> None:
        await asyncio.sleep(1.5)
        await asyncio.to_thread(postgres_server.start)

    async with asyncio.TaskGroup() as group:
        group.create_task(come_back())
        async with running(definition, tmp_path, database_url) as started:
            assert await started.cancel("r1") == 1


async def test_reflection_lists_the_services(rig: Rig) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with rig.mesh.channel("dataset") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # pyrefly: ignore[bad-argument-type]
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5):  # pyrefly: ignore[not-callable]
            names = {service.name for service in answer.list_services_response.service}
    assert {"argosy.common.v1.TaskService", "argosy.common.v1.EventService", "grpc.health.v1.Health"} <= names  # pyrefly: ignore[unbound-name]


async def test_unknown_method_is_unimplemented(rig: Rig) -> None:
    async with rig.mesh.channel("dataset") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/argosy.common.v1.TaskService/Explode")(b"", timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
