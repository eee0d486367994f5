"""The room of one task, as its worker takes it, keeps it and gives it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from libs.common.tasks import store
from libs.common.tasks.kinds import TaskKind
from libs.common.tasks.quota import Needs, NoRoom, QuotaLedger
from libs.common.tasks.task import Task

# Well within the time after which identity takes what was reserved to be free: fifteen minutes.
_BEAT_SECONDS = 60.0
_WORKS = ("QUEUED", "RUNNING")

_log = logging.getLogger(__name__)


class Room:
    """The room of a task in identity's ledger.

    Args:
        database: the service's own.
        quota: identity's ledger.
        kind: says what the task needs.
        runtime: handed to `kind.needs`.
        clock: the injected clock.
    """

    def __init__(self, database: Database, quota: QuotaLedger, kind: TaskKind, runtime: Any, clock: Clock) -> None:
        self._database = database
        self._quota = quota
        self._kind = kind
        self._runtime = runtime
        self._clock = clock
        self._needs: Needs | None = None

    async def needs(self, task: Task) -> Needs:
        """What the task holds while it runs."""
        if self._needs is None:
            self._needs = await self._kind.needs_of(task, self._runtime)
        return self._needs

    async def reserve(self, task: Task, *, running: bool = False) -> NoRoom | None:
        """Takes the room of a task whose row has the id of its reservation. Raises as `QuotaLedger.reserve`."""
        assert task.reservation is not None
        needs = await self.needs(task)
        try:
            return await self._quota.reserve(
                task.org, task.reservation, task.creator, task.name, task.target, needs, running=running
            )
        except ArgosyError as error:
            if error.reason != "DEADLINE_EXCEEDED":
                raise
            # A ledger that is slow is one that is away for now: the same room is asked for again.
            raise DomainError("PEER_UNAVAILABLE", "identity did not answer in time", service="identity") from error

    async def hold(self, current: Callable[[], Task]) -> None:
        """Says now and then that the task runs, until it is cancelled.

        Args:
            current: the task as it is now.
        """
        while True:
            await self._clock.sleep(_BEAT_SECONDS)
            task = current()
            if task.reservation is None or task.state != "RUNNING":
                continue
            try:
                await self.reserve(task, running=True)
            except (DomainError, ArgosyError) as error:
                _log.warning("cannot say that %s runs: %s", task.name, error.message)

    async def give_back(self, task: Task) -> None:
        """Settles what a task held that has ended or pauses; where that cannot be now, the worker's tidying does it."""
        if task.reservation is None or task.state in _WORKS:
            return
        try:
            await settle(self._database, self._quota, task)
        except (DomainError, ArgosyError) as error:
            _log.warning("the room of %s is given back later: %s", task.name, error.message)


async def settle(database: Database, quota: QuotaLedger, task: Task) -> None:
    """Gives the room of a task back that has ended or pauses, and lets those look that wait for it."""
    # A paused task has no end; it holds nothing from its last change on.
    await quota.settle(task.org, task.reservation or "", task.end_time or task.update_time)
    async with database.system() as uow:
        await store.settled(uow, task)
        await store.hurry(uow, task.org)
