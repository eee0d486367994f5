"""The rows of streams."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, insert, select

from libs.common.db.repository import Repository
from services.dataset.domain.streams import Batch, Stream
from services.dataset.store import tables


class Streams(Repository[Stream]):
    table = tables.streams
    entity = Stream

    async def add_batch(self, stream: Stream, batch: Batch) -> None:
        """Stores a batch that the stream has taken, behind the others."""
        # Rows so far: a number that grows with every batch.
        row = {"stream_uid": stream.uid, "number": stream.row_count, "org": stream.org}
        row |= {"rows": batch.rows, "size": batch.size, "sha256": batch.sha256}
        await (await self.uow.connection()).execute(insert(tables.stream_batches).values(row))

    async def take_batches(self, stream: Stream) -> list[Batch]:
        """The batches that wait, in order; they wait no more."""
        columns, connection = tables.stream_batches.c, await self.uow.connection()
        mine = (columns.stream_uid == stream.uid, columns.org == stream.org)
        query = select(columns.rows, columns.size, columns.sha256).where(*mine).order_by(columns.number)
        found = [Batch(*row) for row in await connection.execute(query)]
        await connection.execute(delete(tables.stream_batches).where(*mine))
        return found

    async def next_due(self, now: datetime) -> Stream | None:
        """A stream whose rows have waited for long enough, locked; others who look at the same time get another one."""
        columns = self.table.c
        # What waits in one that is deleted was taken too.
        query = self.query().where(columns.roll_time <= now).order_by(columns.roll_time)
        found = await self.fetch(query.limit(1).with_for_update(skip_locked=True))
        return found[0] if found else None

    async def sourced(self) -> set[str]:
        """The names of the streams whose rows come from a source."""
        columns = self.table.c
        query = select(columns.name).where(*self._tenant(), columns.source_subject != "", columns.delete_time.is_(None))
        return set((await (await self.uow.connection()).execute(query)).scalars())

    async def blobs(self) -> set[str]:
        """The blobs of all batches that wait, for the garbage collector."""
        return set((await (await self.uow.connection()).execute(select(tables.stream_batches.c.sha256))).scalars())
