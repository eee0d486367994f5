"""What the services say while a dependency is away or full, and that they heal by themselves and lose nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import grpc
import protovalidate
import pytest
from argosy.common.v1 import options_pb2
from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2_grpc
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import text

from deploy.local import nats, postgres
from libs.common.errors import from_rpc_error
from libs.common.pki import OPERATOR
from tests.fuzz.fuzz_mesh import FuzzMesh, methods

pytestmark = pytest.mark.timeout(180)

_HEAL_SECONDS = 30.0
_PART = 4 << 20
_LIMIT = 1 << 20
_WITH_DATABASE = ("identity", "dataset", "training", "deploy", "eval", "app")


class Datasets:
    """Calls dataset as an editor of `acme`."""

    def __init__(self, mesh: FuzzMesh) -> None:
        self._stub = dataset_service_pb2_grpc.DatasetServiceStub(mesh.channel("dataset", OPERATOR))
        self._metadata = mesh.mesh.metadata(role=options_pb2.ROLE_EDITOR, ttl=3600)

    def __getattr__(self, rpc: str) -> Callable[[Any], Awaitable[Any]]:
        return lambda request: getattr(self._stub, rpc)(request, metadata=self._metadata, timeout=30)

    async def create(self, dataset_id: str) -> dataset_pb2.Dataset:
        return await self.CreateDataset(
            pb.CreateDatasetRequest(parent="orgs/acme", dataset_id=dataset_id, dataset=dataset_pb2.Dataset())
        )


@pytest.fixture
def datasets(fuzz_mesh: FuzzMesh) -> Datasets:
    return Datasets(fuzz_mesh)


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    """Waits until something holds."""
    async with asyncio.timeout(_HEAL_SECONDS):
        while not await what():
            await asyncio.sleep(0.1)


async def test_a_database_that_stops_is_said_by_every_list_and_heals(
    fuzz_mesh: FuzzMesh, datasets: Datasets, postgres_server: postgres.Server
) -> None:
    await datasets.create("before")
    postgres_server.stop()
    try:
        reasons: dict[str, set[str]] = {}
        for service, method, request in plain_lists():
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await fuzz_mesh.call(method, service, request)
            error = from_rpc_error(raised.value)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, (method.full_name, raised.value)
            assert error.retry_after, method.full_name
            reasons.setdefault(service, set()).add(error.reason)
        assert reasons == {service: {"DATABASE_UNAVAILABLE"} for service in _WITH_DATABASE}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await datasets.create("meanwhile")
        assert from_rpc_error(refused.value).reason == "DATABASE_UNAVAILABLE"
        for service in _WITH_DATABASE:
            await eventually(lambda service=service: _is(fuzz_mesh, service, serving=False))
    finally:
        await asyncio.to_thread(postgres_server.start)
    for service in _WITH_DATABASE:
        await eventually(lambda service=service: _is(fuzz_mesh, service, serving=True))
    found = await datasets.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme"))
    assert {"orgs/acme/datasets/before", "orgs/acme/datasets/seed"} <= {dataset.name for dataset in found.datasets}
    await datasets.create("after")


def plain_lists() -> list[tuple[str, MethodDescriptor, bytes]]:
    """(service, RPC, request) of every List that needs nothing but an organization."""
    found: list[tuple[str, MethodDescriptor, bytes]] = []
    for service, method in methods():
        request: Any = GetMessageClass(method.input_type)()
        if service not in _WITH_DATABASE or not method.name.startswith("List"):
            continue
        if "parent" in method.input_type.fields_by_name:
            request.parent = f"orgs/acme/{service}" if method.name == "ListTasks" else "orgs/acme"
        if not protovalidate.Validator().collect_violations(request):
            found.append((service, method, request.SerializeToString()))
    return found


async def _is(mesh: FuzzMesh, service: str, *, serving: bool) -> bool:
    return await mesh.serving(service) is serving


async def test_without_the_bus_writes_go_on_and_events_follow(
    fuzz_mesh: FuzzMesh, datasets: Datasets, nats_server: nats.Server
) -> None:
    nats_server.stop()
    try:
        for number in range(5):
            await datasets.create(f"unheard-{number}")
        assert await fuzz_mesh.serving("dataset")
        assert await _unpublished(fuzz_mesh) >= 5
    finally:
        await asyncio.to_thread(nats_server.start)

    async def published() -> bool:
        return await _unpublished(fuzz_mesh) == 0

    await eventually(published)


async def _unpublished(mesh: FuzzMesh) -> int:
    app: Any = mesh.services["dataset"].app
    async with app.database.system(read_only=True) as uow:
        connection = await uow.connection()
        statement = text("SELECT count(*) FROM outbox WHERE publish_time IS NULL")
        return (await connection.execute(statement)).scalar_one()


@contextmanager
def small_files() -> Generator[None]:
    """Files of this process may not grow beyond a mebibyte: what a full disk is to a store of larger parts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_parts_and_loses_none(datasets: Datasets) -> None:
    parts = [os.urandom(_PART), os.urandom(_PART)]
    whole = b"".join(parts)
    upload = await datasets.CreateUpload(
        pb.CreateUploadRequest(parent="orgs/acme", file_name="rows.jsonl", size=len(whole))
    )
    await datasets.AppendUpload(_part(upload.name, 0, parts[0]))
    with small_files():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await datasets.AppendUpload(_part(upload.name, _PART, parts[1]))
        error = from_rpc_error(raised.value)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, raised.value
        assert error.reason == "STORAGE_FULL"
        # What needs no space goes on.
        assert (await datasets.GetUpload(pb.GetUploadRequest(name=upload.name))).offset == _PART
    await datasets.AppendUpload(_part(upload.name, _PART, parts[1]))
    digest = hashlib.sha256(whole).hexdigest()
    done = await datasets.CommitUpload(pb.CommitUploadRequest(name=upload.name, sha256=digest))
    assert done.state == dataset_pb2.Upload.STATE_COMMITTED
    assert done.offset == len(whole)


def _part(name: str, offset: int, data: bytes) -> pb.AppendUploadRequest:
    return pb.AppendUploadRequest(name=name, offset=offset, data=data, sha256=hashlib.sha256(data).hexdigest())
