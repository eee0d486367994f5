"""The way out: numbers the rows of the outbox and publishes them, in one process of the service at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import asyncpg
from sqlalchemy import func, select, text, update

from libs.common.bus.bus import Bus, BusUnavailableError
from libs.common.bus.handlers import with_cursor
from libs.common.bus.retention import prune
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.db.errors import CONNECTION_LOST
from libs.common.db.listen import listening
from libs.common.db.outbox import CHANNEL, subject
from libs.common.db.tables import outbox, outbox_cursor
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.obs import meter

_log = logging.getLogger(__name__)

# Any number that nothing else in a service's database locks.
_LEADER_LOCK = 7_305_002
# How soon another process takes over, and how soon a bus that was away is tried again.
_BEAT_SECONDS = 1.0
# Behind LISTEN/NOTIFY, while there is nothing to do.
_IDLE_SECONDS = 5.0
_BATCH = 200
_PRUNE_SECONDS = 3600.0

# One cheap look a beat while nothing happens.
_WAITING = (
    "SELECT EXISTS (SELECT FROM outbox WHERE cursor IS NULL)"
    " OR EXISTS (SELECT FROM outbox WHERE cursor IS NOT NULL AND publish_time IS NULL)"
)
_NUMBER = text(
    """
    WITH fresh AS (
        SELECT id, row_number() OVER (ORDER BY id) AS place
        FROM outbox WHERE cursor IS NULL ORDER BY id LIMIT :batch
    )
    UPDATE outbox SET cursor = :last + fresh.place FROM fresh WHERE outbox.id = fresh.id
    """
)


class Relay:
    """Publishes what units of work have emitted.

    The leader holds an advisory lock on a connection of its own; PostgreSQL frees it when that process dies. Leadership
    only saves work: two relays at once would number rows correctly, and the stream drops what is sent twice.

    Args:
        database: of the service.
        bus: of the process.
        clock: for the beat.
    """

    def __init__(self, database: Database, bus: Bus, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock
        self._woken = asyncio.Event()
        self._pruned = -_PRUNE_SECONDS
        self._published = meter().create_counter("argosy.events.published", description="events sent to the bus")
        self.leading = False

    async def run(self) -> None:
        """Relays until it is cancelled; waits while the database is away."""
        while True:
            try:
                await self._lead()
            except (DomainError, *CONNECTION_LOST) as error:
                _log.warning("the relay lost its database: %s", error or type(error).__name__)
            await self._clock.sleep(_BEAT_SECONDS)

    async def _lead(self) -> None:
        """One connection's life: waits for the lock, then relays while the connection stands."""
        async with listening(self._database, CHANNEL, self._wake) as connection:
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LEADER_LOCK):
                await self._clock.sleep(_BEAT_SECONDS)
            self.leading = True
            try:
                await self._relay(connection)
            finally:
                self.leading = False

    async def _relay(self, connection: asyncpg.Connection) -> None:
        while True:
            self._woken.clear()
            # Raises when the connection, and with it the lock, is gone.
            waiting = await connection.fetchval(_WAITING)
            if waiting:
                await self.pump()
            await self._prune()
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_SECONDS if waiting else _IDLE_SECONDS):
                    await self._woken.wait()

    def _wake(self, *_: object) -> None:
        self._woken.set()

    async def pump(self) -> None:
        """Numbers and publishes everything that waits; what cannot be published now waits for the next time."""
        while await self.number():
            pass
        with suppress(BusUnavailableError):
            while await self._publish_batch():
                pass

    async def number(self) -> int:
        """Gives cursors to rows that have none; returns how many got one.

        The lock on the counter's row makes cursors visible in their order: whoever has read up to one can be sure that
        no smaller one appears later, which the ids of the rows do not promise.
        """
        async with self._database.system() as uow:
            connection = await uow.connection()
            waiting = select(outbox.c.id).where(outbox.c.cursor.is_(None)).limit(1)
            if (await connection.execute(waiting)).first() is None:
                return 0
            last = (await connection.execute(select(outbox_cursor.c.last).with_for_update())).scalar_one()
            count = (await connection.execute(_NUMBER, {"last": last, "batch": _BATCH})).rowcount
            await connection.execute(update(outbox_cursor).values(last=last + count))
            return count

    async def _publish_batch(self) -> int:
        if not self._bus.connected:
            return 0
        async with self._database.reading() as connection:
            query = select(outbox.c.id, outbox.c.event, outbox.c.cursor)
            query = query.where(outbox.c.cursor.is_not(None), outbox.c.publish_time.is_(None))
            rows = (await connection.execute(query.order_by(outbox.c.cursor).limit(_BATCH))).all()
        sent: list[int] = []
        try:
            # One after the other: events of one resource arrive in their order.
            for row in rows:
                event = with_cursor(row.event, row.cursor)
                trace = {"traceparent": event.traceparent} if event.traceparent else {}
                await self._bus.publish(subject(event), event.SerializeToString(), event.id, trace)
                sent.append(row.id)
        finally:
            await self._note(sent)
        return len(sent)

    async def _note(self, sent: list[int]) -> None:
        if not sent:
            return
        async with self._database.system() as uow:
            noted = update(outbox).where(outbox.c.id.in_(sent)).values(publish_time=func.now())
            await (await uow.connection()).execute(noted)
        self._published.add(len(sent))

    async def _prune(self) -> None:
        if self._clock.monotonic() - self._pruned < _PRUNE_SECONDS:
            return
        self._pruned = self._clock.monotonic()
        await prune(self._database)
