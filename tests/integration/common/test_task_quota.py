"""The room of tasks: taken before they start, kept while they run, given back whatever their end was.

PostgreSQL is real; carriers are rows of a dictionary, and the ledger has so many cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.common.db.engine import create_engine
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.tasks import Needs, NoRoom, Task, TaskKind, Tasks, TaskWorker, room, store, worker
from libs.common.testing.database import apply
from libs.common.testing.task_worker import SERVICE, kinds, migrate
from libs.compute.client import CarrierReport

pytestmark = pytest.mark.timeout(60)
ORG = "acme"
FAULT = {"reason": "INTERNAL", "message": "", "metadata": {}, "retryable": False}


class Carriers:
    """A driver whose carriers run until the test says how they end."""

    def __init__(self) -> None:
        self.running: dict[str, CarrierReport] = {}
        self.started: list[str] = []

    async def submit(self, name: str, entrypoint: str, spec: Any, **_: Any) -> None:
        if name not in self.running:
            self.started.append(name)
            self.running[name] = CarrierReport("running")

    def end(self, **report: Any) -> None:
        """Ends all that run."""
        for name in self.running:
            self.running[name] = CarrierReport(**report)

    async def poll(self, name: str, cursor: int = 0) -> CarrierReport:
        return self.running.get(name, CarrierReport("lost"))

    async def cancel(self, name: str) -> None:
        self.running[name] = CarrierReport("cancelled")

    async def pause(self, name: str) -> None:
        self.running[name] = CarrierReport("paused")

    async def dismiss(self, name: str) -> None:
        self.running.pop(name, None)

    async def list(self, prefix: str = "") -> list[str]:
        return []

    async def close(self) -> None:
        return None


@dataclass
class Cores:
    """A ledger with so many cores, as identity keeps it."""

    cores: float
    held: dict[str, float] = field(default_factory=dict[str, float])
    settled: list[str] = field(default_factory=list[str])
    most: float = 0.0
    away: bool = False
    kept: int = 0
    retry: float = 0.2

    async def reserve(
        self, org: str, reservation: str, subject: str, task: str, target: str, needs: Needs, *, running: bool = False
    ) -> NoRoom | None:
        self._require_here()
        if needs.cpus > self.cores:
            raise ArgosyError("QUOTA_EXCEEDED", "It needs too many cores.")
        if reservation in self.settled:
            raise ArgosyError("STATE_CONFLICT", "It was settled.")
        self.kept += running
        if reservation not in self.held and sum(self.held.values()) + needs.cpus > self.cores and not running:
            return NoRoom("all cores are used", self.retry)
        self.held[reservation] = needs.cpus
        self.most = max(self.most, sum(self.held.values()))
        return None

    async def settle(self, org: str, reservation: str, end_time: Any) -> None:
        self._require_here()
        self.held.pop(reservation, None)
        self.settled.append(reservation)

    def _require_here(self) -> None:
        if self.away:
            raise ArgosyError("PEER_UNAVAILABLE", "identity does not answer.")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await apply(database_url, migrate)
    database = Database(create_engine(database_url), SERVICE)
    yield database
    await database.close()


async def _needs(task: Task, runtime: Any) -> Needs:
    return Needs(cpus=task.input["cpus"])


@asynccontextmanager
async def working(database: Database, carriers: Carriers, ledger: Cores | None) -> AsyncGenerator[TaskWorker]:
    """A worker; it is stopped in the end, and gives its tasks back."""
    made: list[TaskKind] = [replace(kind, needs=_needs) for kind in kinds()]
    working = TaskWorker(database, made, carriers, lease_seconds=1.5, quota=ledger)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(working.run())
        try:
            yield working
        finally:
            if not running.done():
                await working.stop()


async def create(database: Database, cpus: float = 1) -> str:
    async with database.unit_of_work(ORG, "users/alice") as uow:
        spec = {"cpus": cpus}
        return (await Tasks(SERVICE).create(uow, ORG, "test.steps", "orgs/acme/things/one", spec, "users/alice")).name


async def get(database: Database, name: str) -> Task:
    async with database.unit_of_work(ORG, "users/alice", read_only=True) as uow:
        return await store.get(uow, name)


async def until(database: Database, name: str, wanted: Callable[[Task], bool]) -> Task:
    async with asyncio.timeout(20):
        while not wanted(task := await get(database, name)):
            await asyncio.sleep(0.05)
        return task


def in_state(state: str) -> Callable[[Task], bool]:
    return lambda task: task.state == state


def given_back(task: Task) -> bool:
    return task.reservation is None


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
        await until(database, first, given_back)
        await until(database, second, in_state("RUNNING"))
        carriers.end(state="succeeded", result={})
        await until(database, second, given_back)
    assert ledger.most == 1
    assert not ledger.held


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
        task = await until(database, name, given_back)
        assert task.state == state
    assert not ledger.held


async def test_a_task_that_waits_can_be_cancelled_at_once(database: Database) -> None:
    ledger = Cores(1, {"somebody": 1})
    async with working(database, Carriers(), ledger):
        name = await create(database)
        await until(database, name, lambda task: bool(task.message))
        async with database.unit_of_work(ORG, "users/alice") as uow:
            await Tasks(SERVICE).cancel(uow, name)
        task = await until(database, name, given_back)
        assert task.state == "CANCELLED"
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


async def test_a_retried_task_gets_new_room(database: Database) -> None:
    """Also when the room of its last time is given back in that very moment."""
    carriers, ledger = Carriers(), Cores(1)
    async with working(database, carriers, ledger):
        name = await create(database)
        await until(database, name, in_state("RUNNING"))
        carriers.end(state="paused")
        before = await until(database, name, given_back)
        # As if its worker had been killed between the two writes.
        async with database.system() as uow:
            await store.change(uow, replace(before), reservation=ledger.settled[-1], state="QUEUED")
        task = await until(database, name, in_state("RUNNING"))
        assert task.reservation not in (None, *ledger.settled)


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
        assert (await get(database, name)).reservation is not None
    ledger.away = False
    async with working(database, carriers, ledger):
        await until(database, name, given_back)
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
        await until(database, name, given_back)
    assert not ledger.held


async def test_without_identity_nothing_is_reserved(database: Database) -> None:
    async with working(database, Carriers(), None):
        name = await create(database)
        assert (await until(database, name, in_state("RUNNING"))).reservation is None
