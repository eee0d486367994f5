"""The worker of the jobs role: claims tasks and carries several at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.db.lease import Lease
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.tasks import store
from libs.common.tasks.attempt import Attempt
from libs.common.tasks.kinds import Driver, TaskKind
from libs.common.tasks.quota import QuotaLedger
from libs.common.tasks.room import settle
from libs.common.tasks.task import Task
from libs.common.tasks.wake import Wake

LEASE_SECONDS = 15.0
# New tasks ring; looking so often within a lease is for those whose worker died, and for a LISTEN connection that did.
_LOOKS = 3
_TIDY_SECONDS = 30.0
# Ray decides how many run at once; this bounds the polling of one process.
_MOST_TASKS = 16

_log = logging.getLogger(__name__)


class TaskWorker:
    """Carries the tasks of one service until it is stopped. Several may run beside each other.

    Args:
        database: The service's own.
        kinds: What it can do; tasks of other kinds are left alone.
        driver: Ray; closed at the end.
        runtime: Handed to `TaskKind.load`.
        blobs: The service's store, which gives engines their write grants.
        lease_seconds: A task whose worker died is adopted after so long.
        clock: The injected clock.
        quota: Identity's ledger, where each task reserves what it needs; None: there is no identity.
    """

    def __init__(
        self,
        database: Database,
        kinds: Sequence[TaskKind],
        driver: Driver,
        runtime: Any = None,
        *,
        blobs: BlobStore | None = None,
        lease_seconds: float = LEASE_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
        quota: QuotaLedger | None = None,
    ) -> None:
        self._quota = quota
        self._database = database
        self._kinds = {kind.name: kind for kind in kinds}
        self._driver = driver
        self._runtime = runtime
        self._blobs = blobs
        self._seconds = lease_seconds
        self._clock = clock
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self._wake = Wake(database, clock)
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tidy_at = self._settle_at = 0.0

    async def run(self) -> None:
        """Works until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._wake.run(), name="wake")
                while not self._stopping.is_set():
                    await self._claim(group)
                    await self._tidy()
                    await self._settle()
                    await self._wake.wait(self._seconds / _LOOKS)
                listening.cancel()
                for task in self._running.values():
                    task.cancel()
        finally:
            await self._driver.close()
            self._ended.set()

    async def stop(self) -> None:
        """Gives every task back, for another worker to adopt at once. Their carriers go on."""
        self._stopping.set()
        self._wake.ring()
        await self._ended.wait()

    async def _claim(self, group: asyncio.TaskGroup) -> None:
        free = _MOST_TASKS - len(self._running)
        if free <= 0 or not self._kinds:
            return
        try:
            async with self._database.system() as uow:
                claimed = await store.claim(uow, self._owner, list(self._kinds), self._seconds, free)
        except DomainError as error:
            _log.warning("cannot look for tasks: %s", error.message)
            return
        for lease, task in claimed:
            self._running[lease.token] = group.create_task(self._carry(lease, task), name=task.name)

    async def _carry(self, lease: Lease, task: Task) -> None:
        kind = self._kinds[task.kind]
        driver = kind.driver or self._driver
        attempt = Attempt(
            self._database,
            driver,
            kind,
            self._runtime,
            self._blobs,
            lease,
            task,
            self._seconds,
            self._clock,
            self._quota,
        )
        try:
            await attempt.run()
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            await self._give_back(lease)
        except Exception:  # one task must not take the others down; its lease runs out and it is tried again
            _log.exception("the worker failed on %s", task.name)
        finally:
            self._running.pop(lease.token, None)
            # There is a place for another one.
            self._wake.ring()

    async def _give_back(self, lease: Lease) -> None:
        try:
            async with self._database.system() as uow:
                await store.release(uow, lease)
        except DomainError:
            return  # the lease runs out by itself

    async def _settle(self) -> None:
        """Gives back what tasks have left, where their worker could not, killed or identity away, and what was deleted
        since."""
        if self._quota is None or self._clock.monotonic() < self._settle_at:
            return
        self._settle_at = self._clock.monotonic() + _TIDY_SECONDS
        try:
            if await settle(self._database, self._quota, _MOST_TASKS) == _MOST_TASKS:
                # There may be more.
                self._settle_at = 0.0
                self._wake.ring()
        except (DomainError, ArgosyError) as error:
            _log.info("room is given back later: %s", error.message)

    async def _tidy(self) -> None:
        """Ends carriers that no living task names: their worker was killed between the row's end and theirs."""
        on_ray = any(kind.driver is None for kind in self._kinds.values())
        if not on_ray or not self._running or self._clock.monotonic() < self._tidy_at:
            return
        self._tidy_at = self._clock.monotonic() + _TIDY_SECONDS
        ours = re.compile(rf"argosy-{re.escape(self._database.service)}-[0-9a-f-]{{36}}-\d+")
        try:
            # Ray first: a carrier that is started after this look is not in the list.
            present = [name for name in await self._driver.list("argosy-") if ours.fullmatch(name)]
            async with self._database.system(read_only=True) as uow:
                wanted = await store.carriers(uow)
            for name in present:
                if name not in wanted:
                    _log.warning("ends the forgotten carrier %s", name)
                    await self._driver.dismiss(name)
        except DomainError as error:
            _log.info("tidying waits: %s", error.message)
