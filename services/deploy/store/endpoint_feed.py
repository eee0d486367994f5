"""One reader of the endpoints for all streams of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress

from sqlalchemy import select

from libs.common.clock import Clock
from libs.common.db.errors import CONNECTION_LOST
from libs.common.db.listen import listening
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from services.deploy.domain.endpoint import EndpointSet, endpoints
from services.deploy.store import tables
from services.deploy.store.announcements import ENDPOINTS_CHANNEL
from services.deploy.store.repositories import Deployments, Replicas

_RETRY_SECONDS = 1.0
# Behind NOTIFY, which a broken connection can lose.
_BEAT_SECONDS = 5.0

_log = logging.getLogger(__name__)


class EndpointFeed:
    """Holds the newest endpoints, and wakes whoever watches them.

    Args:
        database: of the service.
        clock: for the beat.
        resend_seconds: a watcher gets the whole set at least this often.
    """

    def __init__(self, database: Database, clock: Clock, resend_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._resend = resend_seconds
        self._newest: EndpointSet | None = None
        self._changed = asyncio.Event()
        self._notified = asyncio.Event()

    async def run(self) -> None:
        """Follows the database until it is cancelled. While it is away watchers keep what they have."""
        while True:
            try:
                await self._follow()
            except (DomainError, *CONNECTION_LOST) as error:
                _log.warning("the endpoint feed lost its database: %s", error or type(error).__name__)
            await self._clock.sleep(_RETRY_SECONDS)

    async def watch(self) -> AsyncGenerator[EndpointSet]:
        """The whole set at once, after each change, and at least every `resend_seconds`."""
        while True:
            changed = self._changed
            if self._newest is not None:
                yield self._newest
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._resend)

    async def _follow(self) -> None:
        async with listening(self._database, ENDPOINTS_CHANNEL, lambda *_: self._notified.set()) as connection:
            while True:
                self._notified.clear()
                await self._read()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._notified.wait(), _BEAT_SECONDS)
                # Raises when the connection is gone.
                await connection.execute("SELECT 1")

    async def _read(self) -> None:
        uow = self._database.system(read_only=True)
        try:
            counter = select(tables.endpoint_revision.c.revision)
            revision = (await (await uow.connection()).execute(counter)).scalar_one()
            if self._newest is not None and revision == self._newest.revision:
                return
            found = endpoints(await Deployments(uow).serving(), await Replicas(uow).ready())
        finally:
            await uow.rollback()
        self._newest = EndpointSet(revision, found)
        self._changed.set()
        self._changed = asyncio.Event()
