"""Once by event id: the note that an event was applied is in the transaction of its effect."""

from __future__ import annotations

from argosy.common.v1 import event_pb2
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.tables import dead_letters, inbox, subscriptions


class AlreadyAppliedError(Exception):
    """Somebody else has applied the event meanwhile."""


async def seen(connection: AsyncConnection, consumer: str, event_id: str) -> bool:
    """Whether the event was applied, or given up."""
    query = select(inbox.c.event_id).where(inbox.c.consumer == consumer, inbox.c.event_id == event_id)
    return (await connection.execute(query)).first() is not None


async def take(connection: AsyncConnection, consumer: str, event_id: str) -> None:
    """Notes that this transaction applies the event. A second one waits here until the first has ended.

    Raises:
        AlreadyAppliedError: the first was committed.
    """
    row = {"consumer": consumer, "event_id": event_id}
    if (await connection.execute(insert(inbox).values(row).on_conflict_do_nothing())).rowcount == 0:
        raise AlreadyAppliedError(event_id)


async def note_failure(
    connection: AsyncConnection, consumer: str, event: event_pb2.Event, error: str, max_attempts: int
) -> bool:
    """Counts a failed attempt; True when it was the last: the event is a dead letter, and counts as seen.

    Args:
        connection: in a transaction of its own.
        consumer: who failed.
        event: what it failed on.
        error: for people.
        max_attempts: how often an event is tried.
    """
    row = {
        "consumer": consumer,
        "event_id": event.id,
        "type": event.type,
        "event": event.SerializeToString(),
        "error": error,
        "attempts": 1,
    }
    upsert = insert(dead_letters).values(row)
    again = {"attempts": dead_letters.c.attempts + 1, "error": error}
    counted = upsert.on_conflict_do_update(index_elements=["consumer", "event_id"], set_=again)
    attempts = (await connection.execute(counted.returning(dead_letters.c.attempts))).scalar_one()
    if attempts < max_attempts:
        return False
    await connection.execute(insert(inbox).values(consumer=consumer, event_id=event.id).on_conflict_do_nothing())
    dead = dead_letters.update().where(dead_letters.c.consumer == consumer, dead_letters.c.event_id == event.id)
    await connection.execute(dead.values(dead_time=func.now()))
    return True


async def forget_failure(connection: AsyncConnection, consumer: str, event_id: str) -> None:
    """Drops the count of failed attempts of an event that is applied now."""
    gone = delete(dead_letters).where(dead_letters.c.consumer == consumer, dead_letters.c.event_id == event_id)
    await connection.execute(gone)


async def position(connection: AsyncConnection, consumer: str, producer: str) -> int:
    """Cursor up to which a consumer has read the outbox of a producer; 0 at first."""
    query = select(subscriptions.c.cursor)
    query = query.where(subscriptions.c.consumer == consumer, subscriptions.c.producer == producer)
    return (await connection.execute(query)).scalar_one_or_none() or 0


async def move(connection: AsyncConnection, consumer: str, producer: str, cursor: int) -> None:
    """Keeps that cursor."""
    row = {"consumer": consumer, "producer": producer, "cursor": cursor}
    upsert = insert(subscriptions).values(row)
    values = {"cursor": cursor, "update_time": func.now()}
    await connection.execute(upsert.on_conflict_do_update(index_elements=["consumer", "producer"], set_=values))
