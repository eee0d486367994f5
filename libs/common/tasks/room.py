"""The room of one task, as its worker takes it, keeps it and gives it back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError, Needs
from libs.common.errors import ArgosyError
from libs.common.tasks import left_rooms, store
from libs.common.tasks.kinds import TaskKind
from libs.common.tasks.quota import NoRoom, QuotaLedger
from libs.common.tasks.task import Task

# Well within the time after which identity takes what was reserved to be free: fifteen minutes.
_BEAT_SECONDS = 60.0
# So long after it was granted or kept, a room is sure to be there.
_SURE_SECONDS = 600.0
# Its last one, and those that kept its checkpoints before.
_MOST_LEFT = 16
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
        self._sure_until: float | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the room was granted, and so lately that nobody can have got it since."""
        return self._sure_until is not None and self._clock.monotonic() < self._sure_until

    async def needs(self, task: Task) -> Needs:
        """What the task holds while it runs, beside what it keeps since an earlier end."""
        if self._needs is None:
            needs = await self._kind.needs_of(task, self._runtime)
            if needs.storage_bytes:
                async with self._database.system(read_only=True) as uow:
                    kept = await left_rooms.kept_by(uow, task.name)
                needs = replace(needs, storage_bytes=max(0, needs.storage_bytes - kept))
            self._needs = needs
        return self._needs

    async def reserve(self, task: Task, *, running: bool = False) -> NoRoom | None:
        """Takes the room of a task whose row has the id of its reservation. Raises as `QuotaLedger.reserve`."""
        assert task.reservation is not None
        needs, asked = await self.needs(task), self._clock.monotonic()
        try:
            missing = await self._quota.reserve(
                task.org, task.reservation, task.creator, task.name, task.target, needs, running=running
            )
        except ArgosyError as error:
            if error.reason != "DEADLINE_EXCEEDED":
                raise
            # A ledger that is slow is one that is away for now: the same room is asked for again.
            raise DomainError("PEER_UNAVAILABLE", "identity did not answer in time", service="identity") from error
        self._sure_until = asked + _SURE_SECONDS if missing is None else None
        return missing

    async def hold(self, current: Callable[[], Task]) -> None:
        """Says now and then that the task needs its room still, from the grant on, until it is cancelled.

        Args:
            current: the task as it is now.
        """
        while True:
            await self._clock.sleep(_BEAT_SECONDS)
            task = current()
            runs = task.state == "RUNNING"
            if task.reservation is None or not (runs or self._sure_until is not None):
                continue
            try:
                await self.reserve(task, running=runs)
            except (DomainError, ArgosyError) as error:
                _log.warning("cannot keep the room of %s: %s", task.name, error.message)

    async def give_back(self, task: Task) -> None:
        """Tells identity what a task has left that has ended or pauses; where that cannot be now, the worker does it
        later."""
        if task.state in _WORKS:
            return
        try:
            await settle(self._database, self._quota, _MOST_LEFT, task.name)
        except (DomainError, ArgosyError) as error:
            _log.warning("the room of %s is given back later: %s", task.name, error.message)


async def settle(database: Database, quota: QuotaLedger, limit: int, task: str = "") -> int:
    """Tells identity which rooms are left, of one task or of all, and lets those look that can start now.

    Returns:
        How many there were, `limit` at most.
    """
    async with database.system(read_only=True) as uow:
        rooms = await left_rooms.untold(uow, limit, task)
    for room in rooms:
        may_start = await quota.settle(room)
        async with database.system() as uow:
            # The tasks first, as where one ends: the other way round the two could wait for each other.
            await store.hurry(uow, room.org, may_start)
            await left_rooms.tell(uow, room)
    return len(rooms)
