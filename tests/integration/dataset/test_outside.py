"""Imports from outside: links and databases, with real PostgreSQL, NATS, Ray and identity."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from argosy.common.v1 import options_pb2, task_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from argosy.identity.v1 import identity_pb2, identity_service_pb2, identity_service_pb2_grpc
from dataset_client import DEADLINE, Client, dataset_service, refusal
from sqlalchemy import text

from deploy.local.nats import Server
from deploy.local.postgres import ADMIN
from deploy.local.postgres import Server as Postgres
from libs.common.domain import DomainError
from libs.common.http.links import Networks
from libs.common.tasks import store
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay
from libs.common.testing.service import running_service
from libs.compute.context import EngineError
from services.dataset.engines.databases import Query
from services.identity.app import DEFINITION as IDENTITY
from tests.unit.common.web import answer, giving, web

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

DOCS = "orgs/acme/datasets/docs"
LOOPBACK = Networks(["127.0.0.0/8"], "SETTING")
ROWS = 1000


# What people may ask for.


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "source"),
        ({"uri": "http://127.0.0.1/rows.csv"}, "uri"),
        ({"uri": "http://169.254.169.254/latest"}, "uri"),
        ({"uri": "http://user:hidden@data.example/rows.csv"}, "uri"),
        ({"uri": "file:///etc/passwd"}, "uri"),
        ({"uri": "hdfs://namenode:8020/rows.csv"}, "uri"),
        ({"uri": "webhdfs://10.0.0.1:9870/rows.csv"}, "uri"),
        ({"uri": "https://data.example/" + "a" * 3000}, "uri"),
        ({"uri": "https://data.example/a.csv", "query": "SELECT 1"}, "query"),
        ({"uri": "https://data.example/a.csv", "format": "exe"}, "format"),
        ({"secret": "pg"}, "secret"),
    ],
)
async def test_imports_are_refused_before_they_are_queued(client: Client, fields: dict[str, str], field: str) -> None:
    await client.dataset("docs")
    error = await refusal(client.ImportVersion(pb.ImportVersionRequest(parent=DOCS, **fields)))  # type: ignore[arg-type]
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
    assert "hidden" not in error.message


async def test_a_secret_of_another_organization_is_not_there(client: Client) -> None:
    await client.dataset("docs")
    request = pb.ImportVersionRequest(parent=DOCS, secret="orgs/other/secrets/pg", query="SELECT 1")
    assert (await refusal(client.ImportVersion(request))).reason == "NOT_FOUND"


# Queries of PostgreSQL.


@pytest.fixture
async def shop(postgres_server: Postgres, database_url: str) -> AsyncIterator[str]:
    """URL of a database with orders, for a user who may even write them."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    await connection.execute(
        "CREATE TABLE orders AS SELECT n, 'note ' || n AS note, n::numeric / 4 AS price, now() AS at"
        f" FROM generate_series(1, {ROWS}) n;"
        "CREATE SEQUENCE numbers;"
        "CREATE FUNCTION spoil() RETURNS int LANGUAGE sql VOLATILE AS 'DELETE FROM orders RETURNING 1'"
    )
    yield database_url
    assert await connection.fetchval("SELECT count(*) FROM orders WHERE note LIKE 'note %'") == ROWS
    await connection.close()


def rows(url: str, query: str, seconds: float = 10.0) -> list[Any]:
    return [line.row for line in Query(url, query, LOOPBACK, "", seconds).rows()]


async def read(url: str, query: str, seconds: float = 10.0) -> list[Any]:
    """The rows; in a thread, because a query has an event loop of its own."""
    return await asyncio.to_thread(rows, url, query, seconds)


async def test_all_rows_come(shop: str) -> None:
    found = await read(shop, "SELECT n, note, price FROM orders ORDER BY n; ")
    assert len(found) == ROWS
    assert found[-1] == {"n": 1000, "note": "note 1000", "price": "250.0000000000000000"}
    assert await read(shop, "WITH few AS (SELECT n FROM orders WHERE n < 3) TABLE few") == [{"n": 1}, {"n": 2}]
    assert await read(shop, "-- none\nSELECT n FROM orders WHERE false -- at all") == []


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO orders VALUES (1)",
        "UPDATE orders SET note = ''",
        "DELETE FROM orders",
        "DELETE FROM orders RETURNING n",
        "MERGE INTO orders USING orders o ON false WHEN NOT MATCHED THEN DO NOTHING",
        "TRUNCATE orders",
        "DROP TABLE orders",
        "CREATE TABLE more AS SELECT * FROM orders",
        "CREATE TEMP TABLE more (n int)",
        "SELECT * INTO more FROM orders",
        "WITH gone AS (DELETE FROM orders RETURNING n) SELECT * FROM gone",
        "WITH new AS (INSERT INTO orders (n) VALUES (1) RETURNING n) SELECT * FROM new",
        "SELECT n FROM orders FOR UPDATE",
        "SELECT spoil()",
        "SELECT nextval('numbers')",
        "SELECT 1; DELETE FROM orders",
        "SELECT 1; COMMIT; DELETE FROM orders",
        "COMMIT",
        "ROLLBACK",
        "SET TRANSACTION READ WRITE",
        "SET default_transaction_read_only = off",
        "SELECT set_config('transaction_read_only', 'off', true), spoil()",
        "COPY orders TO STDOUT",
        "COPY orders TO PROGRAM 'touch /tmp/argosy-stolen'",
        "COPY orders FROM PROGRAM 'echo 1'",
        "COPY (SELECT 1) TO '/tmp/argosy-stolen'",
        "DO $$ BEGIN DELETE FROM orders; END $$",
        "CALL spoil()",
        "EXPLAIN ANALYZE DELETE FROM orders",
        "LOCK TABLE orders",
        "VACUUM orders",
        "LISTEN x",
        "PREPARE p AS DELETE FROM orders",
        "SELECT lo_import('/etc/passwd')",
        "SELECT lo_create(0)",
        "SELECT lo_export(1, '/tmp/argosy-stolen')",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM pg_ls_dir('/')",
        "SELECT pg_reload_conf()",
        "ALTER SYSTEM SET log_min_messages = 'panic'",
        "SELECT $1::int",
        "SELECT 1 AS a, 2 AS a",
        "nonsense",
    ],
)
async def test_queries_only_read(shop: str, query: str) -> None:
    with pytest.raises(DomainError) as caught:
        await read(shop, query)
    assert (caught.value.reason, caught.value.metadata) == ("INVALID_FIELD", {"field": "query"})
    assert not Path("/tmp/argosy-stolen").exists()


async def test_without_the_guard_they_would_write(shop: str) -> None:
    """The same statements, sent as they are, change the table: what stops them is the session."""
    connection = await asyncpg.connect(shop.replace("+asyncpg", ""))
    transaction = connection.transaction()
    await transaction.start()
    assert await connection.fetchval("WITH gone AS (DELETE FROM orders RETURNING n) SELECT count(*) FROM gone") == ROWS
    await transaction.rollback()
    await connection.close()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT pg_sleep(60)",
        "SELECT set_config('statement_timeout', '0', false) UNION ALL SELECT pg_sleep(60)::text",
        "SELECT count(*) FROM generate_series(1, 100000000000)",
    ],
)
async def test_queries_end_in_time(shop: str, query: str) -> None:
    with pytest.raises(EngineError) as caught:
        await read(shop, query, 0.5)
    assert caught.value.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("column", ["repeat('x', 9000000)", "array_fill(7, ARRAY[5000000])"])
async def test_the_server_sends_no_row_of_more_than_8_mib(shop: str, column: str) -> None:
    """Closing the brackets around the query does not help, and rows that it leaves out itself are not measured."""
    large = f"SELECT n, CASE WHEN n = 900 THEN {column} END AS c FROM orders"
    closing = f"{large} ) asked OFFSET 0) argosy UNION ALL SELECT * FROM (SELECT * FROM ({large} LIMIT 0"
    for query in (large, closing):
        with pytest.raises(DomainError) as caught:
            await read(shop, query)
        assert caught.value.metadata == {"field": "query"}
        assert ("more than 8,388,608 bytes" in caught.value.message) == (query == large)
    assert len(await read(shop, f"SELECT * FROM ({large}) all_rows WHERE length(c::text) IS NULL ORDER BY n")) == 999


async def test_users_who_can_write_files_are_refused(postgres_server: Postgres, shop: str) -> None:
    """A superuser's functions write files on the server even in a read-only transaction."""
    url = f"postgresql://{ADMIN}:{postgres_server.password}@127.0.0.1:{postgres_server.port}/{ADMIN}"
    with pytest.raises(DomainError, match="can only read tables") as caught:
        await read(url, "SELECT 1 AS n")
    assert caught.value.metadata == {"field": "secret"}


async def test_wrong_passwords_and_hosts_are_said_without_the_password(postgres_server: Postgres, shop: str) -> None:
    password = shop.split(":")[2].split("@")[0]
    for url, words in (
        (shop.replace(password, "hidden"), "refuses the user or the password"),
        (f"postgresql://u:hidden@127.0.0.1:{postgres_server.port}/none", "refuses"),
        ("postgresql://u:hidden@127.0.0.1:1/none", "does not answer"),
    ):
        with pytest.raises(DomainError, match=words) as caught:
            await read(url, "SELECT 1")
        assert "hidden" not in caught.value.message


# From the call to the version.


@pytest.fixture
async def outside(
    tmp_path: Path, database_url: str, nats_server: Server, ray: RunningRay, postgres_server: Postgres
) -> AsyncIterator[Client]:
    """The service beside an identity that has secrets; imports may lead to 127.0.0.1."""
    mesh = Mesh(tmp_path)
    identity_url = await postgres_server.create_service_database(
        f"identity_{secrets.token_hex(4)}", secrets.token_hex(8)
    )
    identity = dataclasses.replace(IDENTITY, jwks=lambda _: mesh.jwks())
    settings = {
        "nats_url": nats_server.url(),
        "role": "all",
        "ray_address": ray.address,
        "import_networks": "127.0.0.1/32",
    }
    async with (
        running_service(identity, mesh, database_url=identity_url),
        dataset_service(mesh, tmp_path, database_url, **settings) as service,
    ):
        client = Client(mesh, service)
        yield client
        await client.close()


async def finished(client: Client, **fields: str) -> task_pb2.Task:
    return await client.finish(await client.ImportVersion(pb.ImportVersionRequest(parent=DOCS, **fields)))  # type: ignore[arg-type]


async def version_of(client: Client, task: task_pb2.Task) -> Any:
    assert task.state == task_pb2.Task.STATE_SUCCEEDED, task
    return await client.GetDatasetVersion(pb.GetDatasetVersionRequest(name=str(task.result["version"])))


async def test_a_link_becomes_a_version(outside: Client) -> None:
    await outside.dataset("docs")
    data = b"".join(b'{"n": %d}\n' % number for number in range(3000)) + b"broken\n"
    with web(giving(answer(data, ETag='"1"'))) as server:
        version = await version_of(outside, await finished(outside, uri=server.url("/rows.jsonl?key=x")))
        assert (version.row_count, version.report.line_error_count) == (3000, 1)
        (parent,) = version.lineage.parents
        assert parent.name == server.url("/rows.jsonl")
        assert (parent.digest, parent.relation) == (hashlib.sha256(data).hexdigest(), "imported_from")
        # A name that the operator's networks do not cover is found out by the task.
        task = await finished(outside, uri=server.url("/rows.jsonl", "ip6-localhost"))
        assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "INVALID_FIELD")
        assert "ARGOSY_DATASET_IMPORT_NETWORKS" in task.error.message or "no host" in task.error.message


async def test_a_killed_worker_costs_no_byte_that_has_arrived(outside: Client, ray: RunningRay) -> None:
    """kill -9 of the carrier in the middle: the next attempt asks for the rest, and the version is whole."""
    await outside.dataset("docs")
    data = b"".join(b'{"n": %d}\n' % number for number in range(20_000))
    killed = threading.Event()

    def answering(connection: socket.socket, head: str) -> None:
        asked = re.search(r"Range: bytes=(\d+)-", head)
        start = int(asked[1]) if asked else 0
        if not start:
            connection.sendall(answer(data, ETag='"1"')[:100_000])
            return
        killed.wait(60)
        part = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        connection.sendall(answer(data[start:], "206 Partial Content", ETag='"1"', **part))

    with web(answering) as server:
        task = await outside.ImportVersion(pb.ImportVersionRequest(parent=DOCS, uri=server.url("/rows.jsonl")))
        while len(server.heads) < 2 or not await checkpoint(outside, task.name):
            await asyncio.sleep(0.2)
        carriers = [process for process in processes(ray) if "TaskCarrier" in " ".join(process.cmdline())]
        assert len(carriers) == 1
        carriers[0].kill()
        killed.set()
        version = await version_of(outside, await outside.finish(task))
        asked = [re.findall(r"Range: bytes=(\d+)-", head) for head in server.heads]
    assert version.row_count == 20_000
    assert version.lineage.parents[0].digest == hashlib.sha256(data).hexdigest()
    assert asked[0] == []
    assert asked[1] == asked[2] != []
    assert 90_000 < int(asked[2][0]) < 100_000


async def checkpoint(client: Client, task: str) -> Any:
    """Where a task would go on."""
    async with client.app.database.system(read_only=True) as uow:
        return (await store.get(uow, task)).checkpoint


def processes(ray: RunningRay) -> list[psutil.Process]:
    """What belongs to this test's Ray, and to nobody else's."""
    folder = str(ray.head.folder)
    ours = [
        process for process in psutil.process_iter(["cmdline"]) if folder in " ".join(process.info["cmdline"] or [])
    ]
    return list({child.pid: child for process in ours for child in process.children(recursive=True)}.values())


async def test_a_query_becomes_a_version_and_its_password_stays_secret(
    outside: Client, shop: str, ray: RunningRay
) -> None:
    await outside.dataset("docs")
    password = shop.split(":")[2].split("@")[0]
    await keep(outside, "pg", shop)
    task = await finished(outside, secret="orgs/acme/secrets/pg", query="SELECT n, note FROM orders WHERE n <= 900")
    version = await version_of(outside, task)
    assert version.row_count == 900
    (parent,) = version.lineage.parents
    assert parent.name.startswith("postgresql://127.0.0.1:")
    assert parent.digest == version.content_digest
    async with outside.app.database.reading() as connection:
        names = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        tables = [row[0] for row in names if row[0] != "orders"]
        for table in tables:
            for row in await connection.execute(text(f'SELECT * FROM "{table}"')):
                assert password not in str(row), table
    logs = list(ray.head.folder.rglob("*.log"))
    assert logs
    for file in logs:
        assert password.encode() not in file.read_bytes(), file
    task = await finished(outside, secret="orgs/acme/secrets/none", query="SELECT 1")
    assert (task.state, task.error.reason) == (task_pb2.Task.STATE_FAILED, "NOT_FOUND")


async def keep(client: Client, secret: str, payload: str) -> None:
    """Stores a secret as an administrator does."""
    channel = client.mesh.channel("identity")
    stub = identity_service_pb2_grpc.IdentityServiceStub(channel)
    metadata = client.mesh.metadata(role=options_pb2.ROLE_ADMIN)
    system = client.mesh.metadata(org="system", role=options_pb2.ROLE_SYSTEM)
    organization = identity_service_pb2.CreateOrganizationRequest(
        organization_id="acme", organization=identity_pb2.Organization(display_name="Acme")
    )
    await stub.CreateOrganization(organization, metadata=system, timeout=DEADLINE)
    request = identity_service_pb2.CreateSecretRequest(
        parent="orgs/acme", secret_id=secret, secret=identity_pb2.Secret(payload=payload.encode())
    )
    await stub.CreateSecret(request, metadata=metadata, timeout=DEADLINE)
    await channel.close()
