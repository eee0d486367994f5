"""The room of tasks: taken before they start, kept while they run, given back whatever their end was.

PostgreSQL is real; carriers are rows of a dictionary, and the ledger has so many cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.tasks import Tasks, left_rooms, room, worker
from libs.common.testing.database import apply
from libs.common.testing.task_worker import SERVICE, migrate
from tests.integration.common.ledger import (
    FAULT,
    ORG,
    Carriers,
    Cores,
    create,
    get,
    given_back,
    in_state,
    until,
    working,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await apply(database_url, migrate)
    database = Database(create_engine(database_url), SERVICE)
    yield database
    await database.close()


async def test_a_task_without_room_waits_in_nobodys_hands(database: Database) -> None:
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger):
        first = await create(database)
        await until(database, first, in_state("RUNNING"))
        second = await create(database)
        waiting = await until(database, second, lambda task: bool(task.message))
        assert (waiting.state, waiting.attempt) == ("QUEUED", 0)
        assert waiting.message == "waiting for quota: all cores are used"
        assert len(carriers.started) == 1
        carriers.end(state="succeeded", result={})
        await given_back(ledger)
        await until(database, second, in_state("RUNNING"))
        carriers.end(state="succeeded", result={})
        await given_back(ledger, 2)
    assert ledger.most == 1
    assert not ledger.held


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"state": "succeeded", "result": {}}, "SUCCEEDED"),
        (
            {"state": "failed", "error": {"reason": "INTERNAL", "message": "", "metadata": {}, "retryable": False}},
            "FAILED",
        ),
        ({"state": "cancelled"}, "CANCELLED"),
        ({"state": "paused"}, "PAUSED"),
    ],
)
async def test_room_is_given_back_whatever_the_end(database: Database, report: dict[str, Any], state: str) -> None:
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger):
        name = await create(database)
        await until(database, name, in_state("RUNNING"))
        assert list(ledger.held.values()) == [1]
        carriers.end(**report)
        await given_back(ledger)
        task = await get(database, name)
        assert (task.state, task.reservation) == (state, None)
    assert not ledger.held


async def test_a_task_that_waits_can_be_cancelled_at_once(database: Database) -> None:
    ledger = Cores(1, {"somebody": 1})
    async with working(database, Carriers(), ledger):
        name = await create(database)
        await until(database, name, lambda task: bool(task.message))
        async with database.unit_of_work(ORG, "users/alice") as uow:
            await Tasks(SERVICE).cancel(uow, name)
        await given_back(ledger)
        assert (await get(database, name)).state == "CANCELLED"
    assert list(ledger.held) == ["somebody"]


async def test_what_needs_more_than_there_is_fails_by_name(database: Database) -> None:
    async with working(database, Carriers(), Cores(1)):
        name = await create(database, 2)
        task = await until(database, name, in_state("FAILED"))
    assert task.error is not None
    assert (task.error["reason"], task.error["message"]) == ("QUOTA_EXCEEDED", "It needs too many cores.")


async def test_a_lost_carrier_keeps_its_room_for_the_next_attempt(database: Database) -> None:
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger):
        name = await create(database)
        held = (await until(database, name, in_state("RUNNING"))).reservation
        carriers.running.clear()
        task = await until(database, name, lambda task: task.attempt == 2)
        assert task.reservation == held
        assert list(ledger.held) == [held]


async def test_a_task_that_is_retried_at_its_end_gets_room_of_its_own(database: Database) -> None:
    """While the room of its last time is still being given back. With that one it would run, and have none."""
    carriers, ledger = Carriers(), Cores(2)
    ledger.open.clear()
    async with working(database, carriers, ledger):
        name = await create(database)
        first = (await until(database, name, in_state("RUNNING"))).reservation
        carriers.end(state="failed", error=FAULT)
        await until(database, name, in_state("FAILED"))
        carriers.running.clear()
        async with database.unit_of_work(ORG, "users/alice") as uow:
            await Tasks(SERVICE).retry(uow, name)
        task = await until(database, name, in_state("RUNNING"))
        ledger.open.set()
        await given_back(ledger)
        assert ledger.settled == [first]
        assert list(ledger.held) == [task.reservation]


@pytest.mark.parametrize("away", [False, True], ids=["killed", "identity away"])
async def test_a_worker_that_is_killed_leaves_its_room_to_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """Between the end of the task and that of its room: the sweep of any worker gives it back. Off, it stays."""
    monkeypatch.setattr(worker, "_TIDY_SECONDS", 0.0)
    carriers, ledger = Carriers(), Cores(1)

    async def killed(*_: Any) -> None:
        raise DomainError("PEER_UNAVAILABLE", "killed")

    with monkeypatch.context() as patch:
        if not away:
            patch.setattr(room, "settle", killed)
            patch.setattr(worker, "settle", killed)
        async with working(database, carriers, ledger):
            name = await create(database)
            await until(database, name, in_state("RUNNING"))
            ledger.away = away
            carriers.end(state="succeeded", result={})
            await until(database, name, in_state("SUCCEEDED"))
            await asyncio.sleep(0.3)
        assert len(ledger.held) == 1
        async with database.system(read_only=True) as uow:
            assert [left.task for left in await left_rooms.untold(uow, 9)] == [name]
    ledger.away = False
    async with working(database, carriers, ledger):
        await given_back(ledger)
    assert not ledger.held


async def test_the_next_worker_keeps_the_room_of_what_it_adopts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_BEAT_SECONDS", 0.1)
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger):
        name = await create(database)
        await until(database, name, in_state("RUNNING"))
    assert len(ledger.held) == 1, "the carrier goes on, and so does its room"
    # Meanwhile identity took it to be gone.
    ledger.held.clear()
    ledger.kept = 0
    async with working(database, carriers, ledger):
        async with asyncio.timeout(10):
            while not ledger.held:
                await asyncio.sleep(0.05)
        assert ledger.kept
        carriers.end(state="succeeded", result={})
        await given_back(ledger)
    assert not ledger.held


async def test_without_identity_nothing_is_reserved(database: Database) -> None:
    async with working(database, Carriers(), None):
        name = await create(database)
        assert (await until(database, name, in_state("RUNNING"))).reservation is None
