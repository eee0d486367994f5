"""Tells the streams of WatchRevocations in this process that something was revoked, here or in another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from libs.common.clock import Clock
from libs.common.db.errors import CONNECTION_LOST
from libs.common.db.listen import listening
from libs.common.db.uow import Database
from services.identity.store.repositories import REVOCATIONS_CHANNEL

log = logging.getLogger(__name__)
# How soon a connection that died in silence is noticed.
_BEAT_SECONDS = 5.0
# Revocation holds within a second everywhere.
_RECONNECT_SECONDS = 0.5


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
        """Rings when a revocation was committed, in any process, and while nobody can tell: who looks then is told why.
        Runs until cancelled.
        """
        while True:
            try:
                async with listening(self._database, REVOCATIONS_CHANNEL, lambda *_: self.ring()) as connection:
                    # Whatever was written before the LISTEN.
                    self.ring()
                    while True:
                        await self._clock.sleep(_BEAT_SECONDS)
                        await connection.execute("SELECT 1")
            except CONNECTION_LOST as error:
                log.warning("revocations are not heard of: %s", error or type(error).__name__)
            self.ring()
            await self._clock.sleep(_RECONNECT_SECONDS)
