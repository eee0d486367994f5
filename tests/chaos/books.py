"""What the databases say about one run of the job, read behind the services' backs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from deploy.local.credentials import Credentials
from deploy.local.layout import SERVICES, WITH_JOBS
from tests.mesh import Mesh

# Who listens to whom: events of these types have exactly one row in the inbox of the service.
_HEARD = {"training": ("deploy", ("deploy.deployment.live", "deploy.deployment.stopped"))}
_SETTLED_SECONDS = 60.0
# How often rows were compared is no promise: an evaluation that is adopted asks again, and gets the same answer.
_TASKS = (
    "SELECT kind, state, count(*) AS n FROM tasks"
    " WHERE target LIKE $1 AND kind <> 'dataset.leakage' GROUP BY kind, state"
)
# A work order has a name of its own.
_DEPLOY_TASKS = (
    "SELECT t.kind, t.state, count(*) AS n FROM tasks t JOIN work_orders w ON w.name = t.target"
    " WHERE w.deployment_id LIKE $1 GROUP BY t.kind, t.state"
)


@dataclass
class Books:
    """Counts of one run.

    Attributes:
        versions: (dataset, rows, content digest) of every dataset version.
        tasks: (kind, state) -> how many.
        models: (state, manifest digest) of every model version, and the way that it went.
        gates: (gate, open) of every decision.
        evaluations: (state, state of the gate).
        events: type -> how many were emitted for resources of the run.
        unsent: events that the bus never took.
        unheard: events that a listener has not applied exactly once.
        dead: events that nobody tries to apply any more.
    """

    versions: list[tuple[str, int, str]] = field(default_factory=list)
    tasks: dict[tuple[str, str], int] = field(default_factory=dict)
    models: list[tuple[str, str, str]] = field(default_factory=list)
    gates: list[tuple[str, bool]] = field(default_factory=list)
    evaluations: list[tuple[str, str]] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    unsent: int = 0
    unheard: int = 0
    dead: int = 0


def read(mesh: Mesh, run: str) -> Books:
    """The books of the run whose resources' names end in `run`, once every event has arrived; or as they are after
    a minute.
    """
    return asyncio.run(_settled(mesh, run))  # a test without a loop of its own


def ask(mesh: Mesh, service: str, sql: str, *arguments: object) -> list[Any]:
    """Rows of a service's database; nobody needs to answer for it."""

    async def asked() -> list[Any]:
        connection = await _connect(mesh, service)
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    return asyncio.run(asked())  # as in `read`


async def _connect(mesh: Mesh, service: str) -> asyncpg.Connection:
    password = Credentials(mesh.home).database["postgres"]
    return await asyncpg.connect(
        host="127.0.0.1", port=mesh.ports.postgres, user="postgres", password=password, database=service
    )


async def _settled(mesh: Mesh, run: str) -> Books:
    end = asyncio.get_running_loop().time() + _SETTLED_SECONDS
    while True:
        books = await _read(mesh, run)
        if not (books.unsent or books.unheard) or asyncio.get_running_loop().time() > end:
            return books
        await asyncio.sleep(1.0)


async def _read(mesh: Mesh, run: str) -> Books:
    rows: dict[str, Callable[[str], Awaitable[list[Any]]]] = {}
    connections: list[asyncpg.Connection] = []
    try:
        for name in SERVICES:
            connection = await _connect(mesh, name)
            connections.append(connection)
            if await connection.fetchval("SELECT to_regclass('outbox') IS NOT NULL"):
                rows[name] = _query(connection, f"%{run}%")
        return await _books(rows)
    finally:
        for connection in connections:
            await connection.close()


def _query(connection: asyncpg.Connection, like: str) -> Callable[[str], Awaitable[list[Any]]]:
    async def query(sql: str) -> list[Any]:
        return list(await connection.fetch(sql, like) if "$1" in sql else await connection.fetch(sql))

    return query


async def _books(rows: dict[str, Callable[[str], Awaitable[list[Any]]]]) -> Books:
    books = Books()
    for row in await rows["dataset"](
        "SELECT parent, row_count, content_digest FROM dataset_versions WHERE name LIKE $1 ORDER BY name"
    ):
        books.versions.append(
            (row["parent"].split("/")[-1].rpartition("-")[0], row["row_count"], row["content_digest"])
        )
    for name in WITH_JOBS:
        for row in await rows[name](_DEPLOY_TASKS if name == "deploy" else _TASKS):
            books.tasks[f"{name}: {row['kind']}", row["state"]] = row["n"]
    for row in await rows["training"](
        "SELECT v.state, v.manifest_digest, (SELECT string_agg(t.to_state, ' ' ORDER BY t.id)"
        " FROM model_version_transitions t WHERE t.model_version = v.name) AS way"
        " FROM model_versions v WHERE v.name LIKE $1 ORDER BY v.manifest_digest"
    ):
        books.models.append((row["state"], row["manifest_digest"], row["way"]))
    for row in await rows["training"](
        "SELECT gate, open FROM gate_decisions WHERE model_version LIKE $1 ORDER BY open"
    ):
        books.gates.append((row["gate"], row["open"]))
    for row in await rows["eval"]("SELECT state, gate_state FROM evaluations WHERE name LIKE $1 ORDER BY name"):
        books.evaluations.append((row["state"], row["gate_state"]))
    for query in rows.values():
        for row in await query("SELECT type, count(*) AS n FROM outbox WHERE resource LIKE $1 GROUP BY type"):
            books.events[row["type"]] = row["n"]
        books.unsent += (await query("SELECT count(*) AS n FROM outbox WHERE publish_time IS NULL"))[0]["n"]
        books.dead += (await query("SELECT count(*) AS n FROM dead_letters WHERE dead_time IS NOT NULL"))[0]["n"]
    for listener, (producer, types) in _HEARD.items():
        kinds = ", ".join(f"'{kind}'" for kind in types)
        emitted_ids = {
            row["event_id"] for row in await rows[producer](f"SELECT event_id FROM outbox WHERE type IN ({kinds})")
        }
        applied = [row["event_id"] for row in await rows[listener]("SELECT event_id FROM inbox")]
        books.unheard += len(emitted_ids ^ set(applied)) + len(applied) - len(set(applied))
    return books
