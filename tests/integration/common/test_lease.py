"""One holder at a time, and a late one is refused."""

from __future__ import annotations

import asyncio

import pytest
from alembic.operations import Operations
from sqlalchemy import Column, Text, insert, select, update

from libs.common.db import lease
from libs.common.db.infrastructure import create_resource_table
from libs.common.db.lease import Lease
from libs.common.db.repository import resource_row
from libs.common.db.tables import new_metadata, resource_table
from libs.common.db.uow import Database
from libs.common.testing.database import apply
from tests.integration.common.conftest import note

JOBS = resource_table(new_metadata(), "jobs", *lease.lease_columns(), Column("result", Text))


def create_jobs(op: Operations) -> None:
    create_resource_table(op, "jobs", *lease.lease_columns(), Column("result", Text))


@pytest.fixture
async def jobs(database: Database) -> Database:
    """The database with a table of ten jobs."""
    await apply(database.engine.url.render_as_string(hide_password=False), create_jobs)
    async with database.system() as uow:
        rows = [resource_row(note(f"orgs/acme/jobs/j{number}")) for number in range(10)]
        await (await uow.connection()).execute(insert(JOBS), rows)
    return database


async def claim(database: Database, owner: str, seconds: float = 60, limit: int = 1) -> list[Lease]:
    async with database.system() as uow:
        taken = await lease.claim(
            await uow.connection(),
            JOBS,
            owner,
            seconds,
            where=[JOBS.c.result.is_(None)],
            order_by=[JOBS.c.name],
            limit=limit,
        )
    return [each for each, _ in taken]


async def finish(database: Database, held: Lease, result: str) -> bool:
    async with database.system() as uow:
        change = update(JOBS).where(lease.held(JOBS, held)).values(result=result)
        return (await (await uow.connection()).execute(change)).rowcount == 1


async def test_claims_at_once_never_meet(jobs: Database) -> None:
    taken = await asyncio.gather(*(claim(jobs, f"w{number}", limit=2) for number in range(6)))
    uids = [each.uid for leases in taken for each in leases]
    assert len(uids) == len(set(uids)) == 10


async def test_a_late_holder_is_refused(jobs: Database) -> None:
    (first,) = await claim(jobs, "slow", seconds=0.05)
    await asyncio.sleep(0.1)
    (second,) = await claim(jobs, "next")
    assert (second.uid, second.token != first.token) == (first.uid, True)
    async with jobs.system() as uow:
        connection = await uow.connection()
        assert not await lease.renew(connection, JOBS, first, 60)
        assert await lease.lock(connection, JOBS, first) is None
        assert not await lease.release(connection, JOBS, first)
    assert not await finish(jobs, first, "too late")
    assert await finish(jobs, second, "in time")
    async with jobs.reading() as connection:
        query = select(JOBS.c.result).where(JOBS.c.uid == first.uid)
        assert (await connection.execute(query)).scalar_one() == "in time"


async def test_a_renewed_lease_holds(jobs: Database) -> None:
    (first,) = await claim(jobs, "a", seconds=2, limit=1)
    async with jobs.system() as uow:
        assert await lease.renew(await uow.connection(), JOBS, first, 60)
    await asyncio.sleep(2.1)
    assert first.uid not in [each.uid for each in await claim(jobs, "b", limit=10)]


async def test_a_released_row_is_free(jobs: Database) -> None:
    (first,) = await claim(jobs, "a")
    async with jobs.system() as uow:
        connection = await uow.connection()
        row = await lease.lock(connection, JOBS, first)
        assert row is not None
        assert row["lease_owner"] == "a"
        assert await lease.release(connection, JOBS, first)
    assert (await claim(jobs, "b"))[0].uid == first.uid
