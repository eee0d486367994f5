"""Rooms in identity's ledger that tasks have left, and what is kept of their storage, until identity knows.

A row is written in the transaction in which a task ends or pauses, so that the task itself is free for another room at
once. It is told to identity, and goes when nothing is kept. Bytes that are kept only become fewer: a teller who is late
takes nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, select, update

from libs.common.db.tables import time_type
from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.ids import uuid7
from libs.common.tasks.store import CHANNEL
from libs.common.tasks.tables import left_rooms

_NOW = func.clock_timestamp(type_=time_type())


@dataclass(frozen=True)
class LeftRoom:
    """A room that a task has left.

    Attributes:
        reservation: its id in the ledger.
        subject: who asked for the task.
        holder: what keeps the bytes: a resource, or the task by its checkpoint.
        end_time: since when it is left.
        kept_bytes: of storage; 0: nothing is kept.
    """

    reservation: str
    org: str
    task: str
    subject: str
    holder: str
    end_time: datetime
    kept_bytes: int


async def leave(
    uow: UnitOfWork, org: str, reservation: str, task: str, subject: str, holder: str, kept_bytes: int
) -> None:
    """Leaves the room of a task. What the task kept since an earlier end is in what it keeps now."""
    await give_back(uow, [task])
    await _add(uow, org, reservation, task, subject, holder, kept_bytes)


async def keep(uow: UnitOfWork, org: str, subject: str, holder: str, kept_bytes: int) -> None:
    """A resource keeps bytes again that were given back; whether there is room for them is not asked."""
    await _add(uow, org, uuid7(), "", subject, holder, kept_bytes)


async def give_back(uow: UnitOfWork, holders: Sequence[str] | Select[tuple[str]]) -> None:
    """Holders keep nothing any more."""
    kept = and_(left_rooms.c.holder.in_(holders), left_rooms.c.kept_bytes > 0, *_tenant(uow))
    connection = await uow.connection()
    given = await connection.execute(update(left_rooms).where(kept).values(kept_bytes=0, told=False))
    if given.rowcount:
        await connection.execute(select(func.pg_notify(CHANNEL, "")))


async def kept_by(uow: UnitOfWork, holder: str) -> int:
    """Bytes that a holder keeps."""
    query = select(func.coalesce(func.sum(left_rooms.c.kept_bytes), 0))
    query = query.where(left_rooms.c.holder == holder, *_tenant(uow))
    return int((await (await uow.connection()).execute(query)).scalar_one())


async def untold(uow: UnitOfWork, limit: int, task: str = "") -> list[LeftRoom]:
    """Rooms that identity does not know to be left; of one task, or of all."""
    query = select(left_rooms).where(~left_rooms.c.told)
    if task:
        query = query.where(left_rooms.c.task == task)
    # Bytes are counted where they are now before they are where they were: never too few.
    query = query.order_by(left_rooms.c.kept_bytes.desc()).limit(limit)
    rows = await (await uow.connection()).execute(query)
    return [LeftRoom(**{name: row[name] for name in LeftRoom.__dataclass_fields__}) for row in rows.mappings()]


async def tell(uow: UnitOfWork, room: LeftRoom) -> None:
    """Identity knows it. What was given back meanwhile is told again."""
    same = and_(left_rooms.c.reservation == room.reservation, left_rooms.c.kept_bytes == room.kept_bytes)
    change = update(left_rooms).values(told=True) if room.kept_bytes else delete(left_rooms)
    await (await uow.connection()).execute(change.where(same))


def _tenant(uow: UnitOfWork) -> tuple[ColumnElement[bool], ...]:
    # The first wall; row-level security is the second.
    return () if uow.org == ANY_ORG else (left_rooms.c.org == uow.org,)


async def _add(
    uow: UnitOfWork, org: str, reservation: str, task: str, subject: str, holder: str, kept_bytes: int
) -> None:
    row = {
        "reservation": reservation,
        "org": org,
        "task": task,
        "subject": subject,
        "holder": holder,
        "end_time": _NOW,
        "kept_bytes": kept_bytes,
        "told": False,
    }
    connection = await uow.connection()
    await connection.execute(insert(left_rooms).values(row))
    await connection.execute(select(func.pg_notify(CHANNEL, "")))
