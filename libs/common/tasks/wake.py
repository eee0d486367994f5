"""Wakes workers when there is something to do, so that idle ones need not look often."""

from __future__ import annotations

import asyncio
import logging

from libs.common.clock import Clock
from libs.common.db.errors import CONNECTION_LOST
from libs.common.db.listen import listening
from libs.common.db.uow import Database
from libs.common.tasks.store import CHANNEL

# How soon a connection that died in silence is noticed; until then workers find tasks by looking.
_BEAT_SECONDS = 10.0
_RECONNECT_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Wake:
    """One LISTEN connection of a worker's process.

    Args:
        database: The service's own.
        clock: For the beat.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._event = asyncio.Event()

    def ring(self, *_: object) -> None:
        """Ends a `wait`."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Returns when somebody rang since the last `wait` ended, or after `seconds`."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        ringing = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait((sleeping, ringing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            ringing.cancel()
        self._event.clear()

    async def run(self) -> None:
        """Listens until it is cancelled."""
        while True:
            try:
                await self._listen()
            except CONNECTION_LOST as error:
                _log.info("cannot listen for tasks: %s", error or type(error).__name__)
            await self._clock.sleep(_RECONNECT_SECONDS)

    async def _listen(self) -> None:
        async with listening(self._database, CHANNEL, self.ring) as connection:
            # Whatever was created before the LISTEN.
            self.ring()
            while True:
                await self._clock.sleep(_BEAT_SECONDS)
                await connection.execute("SELECT 1")
