"""Tasks that wait for room, and what they keep: in a fair order, without vain questions, without a gap.

PostgreSQL is real; carriers are rows of a dictionary, and the ledger has so many cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from typing_extensions import override

from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.tasks import NoRoom, Tasks, left_rooms, room, store, worker
from libs.common.testing.database import apply
from libs.common.testing.task_worker import SERVICE, migrate
from tests.integration.common.ledger import ORG, Carriers, Cores, create, get, given_back, in_state, until, working

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await apply(database_url, migrate)
    database = Database(create_engine(database_url), SERVICE)
    yield database
    await database.close()


async def test_many_that_wait_keep_no_worker_busy(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three places in the worker, six tasks that wait and ask again at once: one that needs nothing passes them all.
    Without the order of `claim` the oldest two are taken again and again."""
    monkeypatch.setattr(worker, "_MOST_TASKS", 3)
    carriers, ledger = Carriers(), Cores(1, retry=0.0)
    async with working(database, carriers, ledger):
        first = await create(database)
        await until(database, first, in_state("RUNNING"))
        waiting = [await create(database) for _ in range(6)]
        free = await create(database, 0)
        await until(database, free, in_state("RUNNING"))
        assert {(await get(database, name)).state for name in waiting} == {"QUEUED"}


async def test_an_end_lets_only_those_look_that_fit(database: Database) -> None:
    """Five wait for a minute; each end lets one of them start at once, and the others do not ask."""
    carriers, ledger = Carriers(), Cores(1, retry=60.0)
    async with working(database, carriers, ledger):
        names = [await create(database) for _ in range(6)]
        # All in the queue, so that nobody looks but who is let.
        async with asyncio.timeout(20):
            while sum([(await get(database, name)).message.startswith("waiting") for name in names]) < 5:
                await asyncio.sleep(0.02)
        assert ledger.asks == 6
        for count in range(1, 4):
            carriers.end(state="succeeded", result={})
            async with asyncio.timeout(20):
                while len(carriers.started) <= count:
                    await asyncio.sleep(0.02)
        assert ledger.asks == 6 + 3
        states = [(await get(database, name)).state for name in names]
        assert states.count("QUEUED") == 2


async def test_room_that_comes_free_while_a_task_is_put_off_is_seen(database: Database) -> None:
    """The answer that there is none is on its way when the one that had it ends. Unseen, it would wait a minute."""

    class Slow(Cores):
        """Who is told to wait hears so only after the next end."""

        @override
        async def reserve(self, *args: Any, **options: Any) -> NoRoom | None:
            missing = await super().reserve(*args, **options)
            if missing is not None:
                await told.wait()
            return missing

    carriers, ledger, told = Carriers(), Slow(1, retry=60.0), asyncio.Event()
    async with working(database, carriers, ledger):
        first = await create(database)
        await until(database, first, in_state("RUNNING"))
        second = await create(database)
        async with asyncio.timeout(20):
            while not ledger.waiting:
                await asyncio.sleep(0.02)
            carriers.end(state="succeeded", result={})
            await given_back(ledger)
            while await _untold(database):
                await asyncio.sleep(0.02)
        told.set()
        await until(database, second, in_state("RUNNING"))
        assert ledger.asks == 3


async def _untold(database: Database) -> int:
    async with database.system(read_only=True) as uow:
        return len(await left_rooms.untold(uow, 10))


async def test_room_is_kept_while_the_task_is_loaded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_BEAT_SECONDS", 0.05)
    ledger, loading = Cores(1), asyncio.Event()
    async with working(database, Carriers(), ledger, load=loading):
        name = await create(database)
        async with asyncio.timeout(20):
            while ledger.asks < 4:
                await asyncio.sleep(0.02)
        assert ((await get(database, name)).state, ledger.kept) == ("QUEUED", 0)
        loading.set()
        await until(database, name, in_state("RUNNING"))


async def test_a_task_whose_room_lapsed_while_it_was_loaded_waits_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SURE_SECONDS", 0.0)
    carriers, ledger, loading = Carriers(), Cores(1), asyncio.Event()
    async with working(database, carriers, ledger, load=loading):
        name = await create(database)
        async with asyncio.timeout(20):
            while not ledger.held:
                await asyncio.sleep(0.02)
        ledger.held = {"somebody": 1}
        loading.set()
        await until(database, name, lambda task: task.message.startswith("waiting for quota"))
        assert not carriers.started
        ledger.held.clear()
        await until(database, name, in_state("RUNNING"))


async def test_who_waits_is_not_starved_by_a_steady_backlog(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place in the worker, and always some new tasks that need no room: the one that was put off has its turn."""
    monkeypatch.setattr(worker, "_MOST_TASKS", 1)
    carriers, ledger = Carriers("succeeded"), Cores(1, {"somebody": 1}, retry=0.0)
    async with working(database, carriers, ledger):
        name = await create(database)
        await until(database, name, lambda task: bool(task.message))
        asked = ledger.asks
        async with asyncio.timeout(20):
            while ledger.asks < asked + 3:
                async with database.unit_of_work(ORG, "users/alice", read_only=True) as uow:
                    queued = await store.page(uow, ORG, 8, None, "QUEUED", "")
                for _ in range(8 - len(queued)):
                    await create(database, 0)


async def keeps(ledger: Cores, wanted: dict[str, int]) -> None:
    """Returns when the ledger counts these bytes."""
    async with asyncio.timeout(20):
        while ledger.storage != wanted:
            await asyncio.sleep(0.02)


async def test_what_a_paused_task_keeps_of_storage_is_in_what_it_asks_for_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts from the pause to the end without a gap, and once."""
    monkeypatch.setattr(worker, "_TIDY_SECONDS", 0.2)
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger, storage=100):
        name = await create(database)
        await until(database, name, in_state("RUNNING"))
        carriers.end(state="paused", checkpoint={"bytes": 30})
        await keeps(ledger, {name: 30})
        carriers.running.clear()
        async with database.unit_of_work(ORG, "users/alice") as uow:
            await Tasks(SERVICE).resume(uow, name)
        await until(database, name, in_state("RUNNING"))
        assert [needs.storage_bytes for needs in ledger.needed] == [100, 70]
        assert ledger.storage == {name: 30}, "kept all the time"
        carriers.end(state="succeeded", result={})
        await keeps(ledger, {"orgs/acme/things/one": 40})
        async with database.unit_of_work(ORG, "users/alice") as uow:
            await left_rooms.give_back(uow, ["orgs/acme/things/one"])
        await keeps(ledger, {})
