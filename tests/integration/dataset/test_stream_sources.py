"""Messages of NATS become rows of a stream: each once and in order, whatever happens to whom."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from argosy.common.v1 import options_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from argosy.identity.v1 import identity_pb2, identity_service_pb2, identity_service_pb2_grpc
from dataset_client import DEADLINE, Client, dataset_service, refusal
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import select
from test_killed import patient, service

from deploy.local.nats import Server
from deploy.local.postgres import Server as Postgres
from libs.common.aio import Background
from libs.common.blobs import BlobStore
from libs.common.bus import external
from libs.common.config import CommonSettings
from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.http.links import Networks
from libs.common.rpc.client import Channels
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.dataset.jobs import receiving
from services.dataset.store import tables
from services.dataset.store.streams import Streams
from services.identity.app import DEFINITION as IDENTITY
from tests.conftest import free_port
from tests.subjects import Subjects, numbered, subjects

DATASET = "orgs/acme/datasets/logs"
NAME = f"{DATASET}/streams/live"
GET = pb.GetDatasetStreamRequest(name=NAME)
PASSWORD = "hunter2"


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[Server]:
    """A server outside of the mesh, where `runner` may do everything."""
    running = Server(server_folder / "source", free_port(), server_folder / "source.log", {"runner": PASSWORD})
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
async def outside(server: Server) -> AsyncGenerator[Subjects]:
    async with subjects(server.url("runner", PASSWORD)) as connected:
        await connected.forget("LOGS")
        yield connected


@pytest.fixture
async def reader(
    tmp_path: Path, database_url: str, postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Client]:
    """The service beside an identity that has secrets. Sources may be on 127.0.0.1, and nobody waits long."""
    monkeypatch.setattr(external, "_FETCH_SECONDS", 0.1)
    monkeypatch.setattr(receiving, "_BEAT", 0.1)
    monkeypatch.setattr(receiving, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(receiving, "_LONGEST_PAUSE", 0.2)
    mesh = Mesh(tmp_path)
    identity_url = await postgres_server.create_service_database(
        f"identity_{secrets.token_hex(4)}", secrets.token_hex(8)
    )
    identity = dataclasses.replace(IDENTITY, jwks=lambda _: mesh.jwks())
    async with (
        running_service(identity, mesh, database_url=identity_url),
        dataset_service(mesh, tmp_path, database_url, role="all", import_networks="127.0.0.1/32") as running,
    ):
        client = Client(mesh, running)
        await client.dataset("logs")
        yield client
        await client.close()


def new(source: dataset_pb2.NatsSource, **rules: Any) -> pb.CreateDatasetStreamRequest:
    stream = dataset_pb2.DatasetStream(nats_source=source, **rules)
    return pb.CreateDatasetStreamRequest(parent=DATASET, dataset_stream_id="live", dataset_stream=stream)


def secret(name: str = "nats", subject: str = "logs.>") -> dataset_pb2.NatsSource:
    return dataset_pb2.NatsSource(secret=f"orgs/acme/secrets/{name}", subject=subject)


async def keep(client: Client, **payloads: str) -> None:
    """Stores secrets as an administrator does."""
    channel = client.mesh.channel("identity")
    stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
    system = client.mesh.metadata(org="system", role=options_pb2.ROLE_SYSTEM)
    organization = identity_service_pb2.CreateOrganizationRequest(
        organization_id="acme", organization=identity_pb2.Organization(display_name="Acme")
    )
    await stub.CreateOrganization(organization, metadata=system, timeout=DEADLINE)
    admin = client.mesh.metadata(role=options_pb2.ROLE_ADMIN)
    for name, payload in payloads.items():
        given = identity_pb2.Secret(payload=payload.encode())
        request = identity_service_pb2.CreateSecretRequest(parent="orgs/acme", secret_id=name, secret=given)
        await stub.CreateSecret(request, metadata=admin, timeout=DEADLINE)
    await channel.close()


async def until(client: Client, wanted: Callable[[dataset_pb2.DatasetStream], bool]) -> dataset_pb2.DatasetStream:
    """The stream, once it is as wanted."""
    async with asyncio.timeout(30):
        while not wanted(now := await patient(client.GetDatasetStream, GET)):
            await asyncio.sleep(0.05)
    return now


async def waiting(database: Database, blobs: BlobStore) -> list[Any]:
    """The rows that wait in the stream, in order."""
    batches = tables.stream_batches.c
    async with database.system(read_only=True) as uow:
        found = await (await uow.connection()).execute(select(batches.sha256).order_by(batches.number))
        lines = [b"".join(blobs.get_sync(digest)) for digest in found.scalars()]
    return [orjson.loads(line) for line in b"".join(lines).splitlines()]


async def rows(client: Client) -> list[Any]:
    return await waiting(client.app.database, client.app.blobs)


REFUSED = {
    "uri": [
        "",
        "nats://127.0.0.1:4222",
        "tls://10.0.0.1",
        "nats://[::1]",
        "nats://ann:hidden@nats.example:4222",
        "http://nats.example",
        "nats://nats.example/logs",
    ],
    "subject": ["", "logs.", "logs..web", "logs.>.web", "logs.w*", "logs web", "logs\r\nPUB", "a" * 256],
}


async def test_what_may_not_be_a_source_is_refused(client: Client) -> None:
    await client.dataset("logs")
    for field, values in REFUSED.items():
        for value in values:
            given = dataset_pb2.NatsSource(**{"uri": "nats://nats.example:4222", "subject": "logs.>", field: value})
            error = await refusal(client.CreateDatasetStream(new(given)))
            wanted = ("INVALID_FIELD", f"dataset_stream.nats_source.{field}")
            assert (error.reason, error.metadata["field"]) == wanted, value
            assert "hidden" not in error.message


async def test_a_source_is_one_that_the_caller_may_name(client: Client) -> None:
    await client.dataset("logs")
    foreign = dataset_pb2.NatsSource(secret="orgs/globex/secrets/nats", subject="logs.>")
    assert (await refusal(client.CreateDatasetStream(new(foreign)))).reason == "NOT_FOUND"
    nowhere = dataset_pb2.NatsSource(subject="logs.>")
    assert (await refusal(client.CreateDatasetStream(new(nowhere)))).reason == "INVALID_FIELD"
    for subject in ("logs", "logs.*", "logs.*.web.>", "*.web", ">", "protokolle.größe"):
        given = new(secret(subject=subject))
        given.dataset_stream_id = ""
        assert (await client.CreateDatasetStream(given)).nats_source == secret(subject=subject)
    await client.CreateDatasetStream(new(secret()))
    append = pb.AppendStreamRowsRequest(name=NAME)
    append.rows.add()
    error = await refusal(client.AppendStreamRows(append))
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "sourced")


async def test_messages_become_rows_once_however_many_read(reader: Client, server: Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>")
    await keep(reader, nats=server.url("runner", PASSWORD))
    made = await reader.CreateDatasetStream(new(secret()))
    assert (made.nats_source, made.source_position) == (secret(), 0)
    app, mesh, networks = reader.app, reader.mesh, Networks(["127.0.0.0/8"], "SETTING")
    channels = Channels(CommonSettings(peers=dict(mesh.peers), pki_dir=mesh.pki), "dataset")
    async with Background("others") as background:
        for _ in range(2):
            other = receiving.Receiving(app.database, app.blobs, channels, networks, mesh.clock)
            background.start(other.run(), name="other")
        for first in range(0, 3_000, 300):
            await outside.publish("logs.web", numbered(*range(first, first + 300)))
        broken = [b"", b"[1]", b'{"n": ', b'{"n": "' + b"x" * 300_000 + b'"}', b'{"n":\r\n3000}', b"\xff"]
        await outside.publish("logs.app", broken)
        now = await until(reader, lambda stream: stream.source_position == 3_006)
    await channels.close()
    assert (now.row_count, now.rejected_count, now.source_error) == (3_001, 5, "")
    assert now.last_rejection.startswith("message 3006 is no JSON")
    assert await rows(reader) == [{"n": number} for number in range(3_001)]


async def test_a_reader_waits_for_what_is_in_its_way(reader: Client, server: Server, outside: Subjects) -> None:
    """And goes on where it stood, with every message that came meanwhile."""
    await keep(reader, nats=server.url("runner", PASSWORD))
    await reader.CreateDatasetStream(new(secret()))
    await until(reader, lambda stream: "no JetStream stream keeps logs.>" in stream.source_error)
    await outside.keep("LOGS", "logs.>")
    await outside.publish("logs.web", numbered(0, 1))
    await until(reader, lambda stream: stream.row_count == 2 and not stream.source_error)
    server.kill()
    await until(reader, lambda stream: "cannot be reached" in stream.source_error)
    server.start()
    await outside.publish("logs.web", numbered(2, 3))
    await until(reader, lambda stream: stream.row_count == 4 and not stream.source_error)
    await lock(reader, True)
    await outside.publish("logs.web", numbered(4, 5))
    now = await until(reader, lambda stream: "is locked" in stream.source_error)
    assert now.row_count == 4
    await lock(reader, False)
    await until(reader, lambda stream: stream.row_count == 6 and not stream.source_error)
    await reader.DeleteDataset(pb.DeleteDatasetRequest(name=DATASET))
    await outside.publish("logs.web", numbered(6, 7))
    async with asyncio.timeout(10):
        while "does not exist" not in (await stored(reader)).source_error:
            await asyncio.sleep(0.05)
    await reader.UndeleteDataset(pb.UndeleteDatasetRequest(name=DATASET))
    await until(reader, lambda stream: stream.row_count == 8 and not stream.source_error)
    assert await rows(reader) == [{"n": number} for number in range(8)]
    await outside.keep("LOGS", "logs.>")
    await outside.publish("logs.web", numbered(8))
    now = await until(reader, lambda stream: "make another stream" in stream.source_error)
    assert (now.row_count, now.source_position) == (8, 8)


async def lock(client: Client, locked: bool) -> None:
    dataset = dataset_pb2.Dataset(name=DATASET, locked=locked)
    await client.UpdateDataset(pb.UpdateDatasetRequest(dataset=dataset, update_mask=FieldMask(paths=["locked"])))


async def test_wrong_secrets_are_said_without_a_word_of_them(reader: Client, server: Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>")
    address = f"127.0.0.1:{server.port}"
    await keep(
        reader, wrong=f"nats://runner:hunter3@{address}", odd="hunter3@example", inside="nats://u:hunter3@10.0.0.1"
    )
    said = {"wrong": "refuses the user", "odd": "does not hold", "inside": "not a public address", "none": "not exist"}
    for name in said:
        given = new(secret(name))
        given.dataset_stream_id = name
        await reader.CreateDatasetStream(given)
    async with asyncio.timeout(10):
        for name, text in said.items():
            get = pb.GetDatasetStreamRequest(name=f"{DATASET}/streams/{name}")
            while text not in (now := await reader.GetDatasetStream(get)).source_error:
                await asyncio.sleep(0.05)
            assert "hunter" not in str(now)


async def test_a_deleted_stream_takes_no_more(reader: Client, server: Server, outside: Subjects) -> None:
    await outside.keep("LOGS", "logs.>")
    await keep(reader, nats=server.url("runner", PASSWORD))
    await reader.CreateDatasetStream(new(secret()))
    await outside.publish("logs.web", numbered(1, 2))
    await until(reader, lambda stream: stream.row_count == 2)
    await reader.DeleteDatasetStream(pb.DeleteDatasetStreamRequest(name=NAME))
    await outside.publish("logs.web", numbered(3))
    async with asyncio.timeout(10):
        while any(NAME in task.get_name() for task in asyncio.all_tasks()):
            await asyncio.sleep(0.05)
        # What waited still becomes a version.
        while (found := await stored(reader)).pending_rows:
            await asyncio.sleep(0.05)
    assert (found.source_position, found.row_count, found.roll_count) == (2, 2, 1)


async def stored(client: Client) -> Any:
    """The stream, deleted or hidden as it may be."""
    async with client.app.database.system(read_only=True) as uow:
        return await Streams(uow).get(NAME, deleted=True)


@pytest.mark.timeout(120)
async def test_no_message_is_lost_or_doubled_when_the_service_is_killed(
    tmp_path: Path, database_url: str, nats_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of 5,000 messages, and a restart of NATS."""
    monkeypatch.setenv("ARGOSY_DATASET_IMPORT_NETWORKS", "127.0.0.1/32")
    mesh, database = Mesh(tmp_path), Database(create_engine(database_url), "test")
    async with service(mesh, tmp_path, database_url, nats_server, None, ["rpc", "jobs"]) as (_, jobs):
        client = Client(mesh, None)  # type: ignore[arg-type]
        async with subjects(nats_server.url()) as outside:
            await outside.keep("LOGS", "logs.>")
            create = pb.CreateDatasetRequest(parent="orgs/acme", dataset_id="logs", dataset=dataset_pb2.Dataset())
            await patient(client.CreateDataset, create)
            given = new(dataset_pb2.NatsSource(uri=nats_server.url(), subject="logs.>"))
            await patient(client.CreateDatasetStream, given)
            for first, last in ((0, 1_500), (1_500, 3_000)):
                await outside.publish("logs.web", numbered(*range(first, last)))
                await until(client, lambda stream, first=first: stream.source_position > first)
                jobs.replace()
            await outside.publish("logs.web", numbered(*range(3_000, 4_000)))
        nats_server.kill()
        nats_server.start()
        async with subjects(nats_server.url()) as outside:
            await outside.publish("logs.web", numbered(*range(4_000, 5_000)))
        now = await until(client, lambda stream: stream.source_position == 5_000)
        assert now.row_count == now.pending_rows == 5_000
        assert await waiting(database, BlobStore(f"file://{tmp_path}/blobs")) == [{"n": n} for n in range(5_000)]
        await client.close()
    await database.close()
