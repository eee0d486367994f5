"""What plays Ray and identity's ledger where rooms of tasks are tested, and a worker between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from libs.common.db.uow import Database
from libs.common.domain import Needs
from libs.common.errors import ArgosyError
from libs.common.tasks import Kept, NoRoom, Task, TaskKind, Tasks, TaskWorker, store
from libs.common.tasks.left_rooms import LeftRoom
from libs.common.testing.task_worker import SERVICE, kinds
from libs.compute.client import CarrierReport

ORG = "acme"
FAULT = {"reason": "INTERNAL", "message": "", "metadata": {}, "retryable": False}


class Carriers:
    """A driver whose carriers run until the test says how they end, or end at once."""

    def __init__(self, end: str = "running") -> None:
        self._end = end
        self.running: dict[str, CarrierReport] = {}
        self.started: list[str] = []

    async def submit(self, name: str, entrypoint: str, spec: Any, **_: Any) -> None:
        if name not in self.running:
            self.started.append(name)
            self.running[name] = CarrierReport(self._end, result={})

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
    asks: int = 0
    waiting: dict[str, float] = field(default_factory=dict[str, float])
    left: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    needed: list[Needs] = field(default_factory=list[Needs])

    async def reserve(
        self, org: str, reservation: str, subject: str, task: str, target: str, needs: Needs, *, running: bool = False
    ) -> NoRoom | None:
        self._require_here()
        if needs.cpus > self.cores:
            raise ArgosyError("QUOTA_EXCEEDED", "It needs too many cores.")
        if reservation in self.settled:
            raise ArgosyError("STATE_CONFLICT", "It was settled.")
        self.asks += 1
        self.kept += running
        if reservation not in self.held and sum(self.held.values()) + needs.cpus > self.cores and not running:
            self.waiting[reservation] = needs.cpus
            return NoRoom("all cores are used", self.retry)
        self.waiting.pop(reservation, None)
        self.held[reservation] = needs.cpus
        self.needed.append(needs)
        self.most = max(self.most, sum(self.held.values()))
        return None

    async def settle(self, room: LeftRoom) -> list[str]:
        self._require_here()
        await self.open.wait()
        self.held.pop(room.reservation, None)
        self.waiting.pop(room.reservation, None)
        self.settled.append(room.reservation)
        self.left[room.reservation] = (room.holder, room.kept_bytes)
        free, may_start = self.cores - sum(self.held.values()), list[str]()
        for reservation, cpus in self.waiting.items():
            if cpus <= free:
                free -= cpus
                may_start.append(reservation)
        return may_start

    @property
    def storage(self) -> dict[str, int]:
        """Bytes by what keeps them."""
        return {holder: size for holder, size in self.left.values() if size}

    def __post_init__(self) -> None:
        # Closed: it is slow to settle.
        self.open = asyncio.Event()
        self.open.set()

    def _require_here(self) -> None:
        if self.away:
            raise ArgosyError("PEER_UNAVAILABLE", "identity does not answer.")


def _kept(task: Task) -> Kept:
    if task.state == "SUCCEEDED":
        return Kept(task.target, 40)
    return Kept(task.name, (task.checkpoint or {}).get("bytes", 0))


@asynccontextmanager
async def working(
    database: Database, carriers: Carriers, ledger: Cores | None, load: asyncio.Event | None = None, storage: int = 0
) -> AsyncGenerator[TaskWorker]:
    """A worker; it is stopped in the end, and gives its tasks back. Tasks write `storage` bytes.

    Args:
        load: loading takes until then; None: no time.
    """

    async def needs(task: Task, runtime: Any) -> Needs:
        return Needs(cpus=task.input["cpus"], storage_bytes=storage)

    async def loaded(task: Task, runtime: Any) -> dict[str, Any]:
        if load is not None:
            await load.wait()
        return task.input

    keeps = _kept if storage else None
    made: list[TaskKind] = [replace(kind, needs=needs, load=loaded, keeps=keeps) for kind in kinds()]
    working = TaskWorker(database, made, carriers, lease_seconds=5, quota=ledger)  # type: ignore[arg-type]
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


async def given_back(ledger: Cores, count: int = 1) -> None:
    """Returns when so many rooms have been given back."""
    async with asyncio.timeout(20):
        while len(ledger.settled) < count:
            await asyncio.sleep(0.02)
