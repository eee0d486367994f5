"""Leases on rows: one holder at a time, and a late one is refused.

The token is the fence: every write that a holder makes is guarded by it, so a process that slept through the end of
its lease changes nothing. Times are those of the database, so skewed clocks of processes do not matter.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    RowMapping,
    Table,
    Text,
    UnaryExpression,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.tables import time_type, uid_type


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on one row.

    Attributes:
        uid: of the row.
        token: UUID, new with every claim.
    """

    uid: str
    token: str


def lease_columns() -> list[Column[Any]]:
    """The columns that a leased table has; it has `uid` as well."""
    return [
        Column("lease_owner", Text),
        Column("lease_token", uid_type()),
        Column("lease_expires_at", time_type()),
    ]


async def claim(
    connection: AsyncConnection,
    table: Table,
    owner: str,
    seconds: float,
    *,
    where: Sequence[ColumnElement[bool]],
    order_by: Sequence[ColumnElement[Any] | UnaryExpression[Any]],
    limit: int = 1,
) -> list[tuple[Lease, RowMapping]]:
    """Takes rows that nobody holds, or whose holder let the lease run out.

    Args:
        connection: in a transaction; commit it before the work begins.
        table: with `lease_columns`.
        owner: who claims, for people.
        seconds: how long the lease holds without `renew`.
        where: which rows are work.
        order_by: which come first.
        limit: rows at most.

    Returns:
        The leases with their rows after the claim.
    """
    columns = table.c
    free = or_(columns.lease_expires_at.is_(None), columns.lease_expires_at < func.clock_timestamp())
    # SKIP LOCKED: two processes that claim at once take different rows instead of waiting for each other.
    chosen = select(columns.uid).where(free, *where).order_by(*order_by).limit(limit).with_for_update(skip_locked=True)
    leases: list[tuple[Lease, RowMapping]] = []
    for uid in (await connection.execute(chosen)).scalars().all():
        token = str(uuid.uuid4())
        values = {"lease_owner": owner, "lease_token": token, "lease_expires_at": _until(seconds)}
        taken = update(table).where(columns.uid == uid).values(values).returning(table)
        leases.append((Lease(uid, token), (await connection.execute(taken)).mappings().one()))
    return leases


def held(table: Table, lease: Lease) -> ColumnElement[bool]:
    """The guard for every write of a holder: `update(table).where(held(table, lease))`; no row: the lease is lost."""
    return (table.c.uid == lease.uid) & (table.c.lease_token == lease.token)


async def renew(connection: AsyncConnection, table: Table, lease: Lease, seconds: float) -> bool:
    """Holds the lease for `seconds` from now; False when somebody else has taken the row."""
    change = update(table).where(held(table, lease)).values(lease_expires_at=_until(seconds))
    return (await connection.execute(change)).rowcount == 1


async def lock(connection: AsyncConnection, table: Table, lease: Lease) -> RowMapping | None:
    """Locks the row until the end of the transaction in which the result is applied; None when the lease is lost."""
    query = select(table).where(held(table, lease)).with_for_update()
    return (await connection.execute(query)).mappings().one_or_none()


async def release(connection: AsyncConnection, table: Table, lease: Lease) -> bool:
    """Gives the row back; False when the lease was lost before."""
    nothing: dict[str, None] = {"lease_owner": None, "lease_token": None, "lease_expires_at": None}
    return (await connection.execute(update(table).where(held(table, lease)).values(nothing))).rowcount == 1


async def postpone(connection: AsyncConnection, table: Table, lease: Lease, seconds: float) -> bool:
    """Gives the row back, to nobody for `seconds`; False when the lease was lost before."""
    later: dict[str, Any] = {"lease_owner": None, "lease_token": None, "lease_expires_at": _until(seconds)}
    return (await connection.execute(update(table).where(held(table, lease)).values(later))).rowcount == 1


def _until(seconds: float) -> ColumnElement[Any]:
    # clock_timestamp, not now: a transaction that waited for a lock must not hand out a lease that is half over.
    return func.clock_timestamp(type_=time_type()) + timedelta(seconds=seconds)
