"""How long the tables of the infrastructure keep their rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Delete, Table, delete, func, text
from sqlalchemy.sql.elements import ColumnElement

from libs.common.db import idempotency
from libs.common.db.tables import dead_letters, inbox, outbox
from libs.common.db.uow import Database

OUTBOX_DAYS = 7
# An event is at most this old when a subscriber meets it: a week in the stream and a week in the outbox, and a margin.
INBOX_DAYS = 16
DEAD_LETTER_DAYS = 30


async def prune(database: Database) -> None:
    """Deletes rows that nobody needs any more."""
    async with database.system() as uow:
        connection = await uow.connection()
        await connection.execute(_older(outbox, outbox.c.create_time, OUTBOX_DAYS).where(outbox.c.cursor.is_not(None)))
        await connection.execute(_older(inbox, inbox.c.create_time, INBOX_DAYS))
        await connection.execute(_older(dead_letters, dead_letters.c.first_time, DEAD_LETTER_DAYS))
        await idempotency.prune(connection)


def _older(table: Table, moment: ColumnElement[Any], days: int) -> Delete:
    return delete(table).where(moment < func.now() - text(f"interval '{days} days'"))
