"""Tells the streams of WatchRevocations in this process that something was revoked, here or in another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from services.identity.store.repositories import Revocations

log = logging.getLogger(__name__)
# Revocation holds within a second everywhere; a process that did not write it itself sees it on this beat.
_BEAT_SECONDS = 0.7


class Announcements:
    """A bell that many may wait for. What happened is in the database; the bell only says: look now."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._changed = asyncio.Event()

    def ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def next_ring(self) -> asyncio.Event:
        """Take it before looking into the database: a ring between looking and waiting is then heard."""
        return self._changed

    async def wait(self, ring: asyncio.Event, seconds: float) -> bool:
        """Returns True when that ring has come, False after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ring.wait(), seconds)
        return ring.is_set()

    async def run(self) -> None:
        """Rings when another process wrote a revocation, and while nobody can tell: who looks then is told why. Runs
        until cancelled.
        """
        last = -1
        while True:
            await self._clock.sleep(_BEAT_SECONDS)
            try:
                async with self._database.system(read_only=True) as uow:
                    newest = await Revocations(uow).newest()
            except DomainError as error:
                log.warning("revocations cannot be read: %s", error.message)
                self.ring()
                continue
            if newest != last:
                last = newest
                self.ring()
