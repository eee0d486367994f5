"""All SQL about tasks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, and_, case, func, insert, literal, literal_column, or_, select, update

from libs.common.db import lease as leases
from libs.common.db.lease import Lease
from libs.common.db.tables import time_type
from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError
from libs.common.tasks.tables import task_events, tasks
from libs.common.tasks.task import Json, Task, log_payload, metrics_payload

# Channel of LISTEN/NOTIFY; every service has its own database, so one name serves all.
CHANNEL = "argosy_tasks"
# Delivered when the transaction commits.
_NOTIFY = select(func.pg_notify(CHANNEL, ""))
# A task that tells more than this goes on untold: an engine that logs in a loop must not fill the database.
_MOST_EVENTS = 200_000
_NOW = func.clock_timestamp(type_=time_type())
_CHANGED = {"version": tasks.c.version + 1, "update_time": _NOW}
# Of a task in nobody's hands: due at once.
_IF_LEASED = case((tasks.c.lease_owner.is_not(None), tasks.c.lease_expires_at))


class LeaseLost(Exception):
    """Somebody else has the task; this worker must not touch it any more."""


class Wishes(NamedTuple):
    """What somebody asked of a task: to stop for good, or to stop at its next checkpoint until it is resumed."""

    cancel: bool
    pause: bool


# For callers, within the organization of the unit of work.


async def add(uow: UnitOfWork, row: Json) -> Task:
    """Stores a new task."""
    connection = await uow.connection()
    task = Task.from_row((await connection.execute(insert(tasks).values(row).returning(tasks))).mappings().one())
    await connection.execute(_NOTIFY)
    return task


async def get(uow: UnitOfWork, name: str, *, for_update: bool = False) -> Task:
    """The task. Raises NOT_FOUND."""
    query = select(tasks).where(tasks.c.name == name, *_tenant(uow))
    row = (await (await uow.connection()).execute(query.with_for_update() if for_update else query)).mappings().first()
    if row is None:
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
    return Task.from_row(row)


async def page(
    uow: UnitOfWork, org: str, size: int, after: tuple[datetime, str] | None, state: str, target: str
) -> list[Task]:
    """At most `size` tasks, newest first, after the position (create_time, uid)."""
    query = select(tasks).where(tasks.c.org == org, *_tenant(uow))
    if state:
        query = query.where(tasks.c.state == state)
    if target:
        query = query.where(tasks.c.target == target)
    if after is not None:
        moment, uid = after
        query = query.where(or_(tasks.c.create_time < moment, and_(tasks.c.create_time == moment, tasks.c.uid > uid)))
    rows = await (await uow.connection()).execute(query.order_by(tasks.c.create_time.desc(), tasks.c.uid).limit(size))
    return [Task.from_row(row) for row in rows.mappings()]


async def living(uow: UnitOfWork, kind: str, input: Json) -> Task | None:
    """The oldest task of a kind with these values in its input that waits or runs and is not to stop; None: there is
    none."""
    columns = tasks.c
    query = select(tasks).where(
        columns.kind == kind,
        columns.state.in_(("QUEUED", "RUNNING")),
        ~columns.cancel_requested,
        columns.input.contains(input),
        *_tenant(uow),
    )
    found = await (await uow.connection()).execute(query.order_by(columns.create_time).limit(1))
    row = found.mappings().first()
    return None if row is None else Task.from_row(row)


async def change(uow: UnitOfWork, task: Task, **values: Any) -> Task:
    """Changes a task that `get(..., for_update=True)` locked; one that was put off is looked at at once."""
    values |= {"sequence": tasks.c.sequence + 1, "lease_expires_at": _IF_LEASED}
    statement = update(tasks).where(tasks.c.uid == task.uid).values(**_CHANGED, **values)
    connection = await uow.connection()
    changed = Task.from_row((await connection.execute(statement.returning(tasks))).mappings().one())
    await connection.execute(_NOTIFY)
    return changed


async def events(
    uow: UnitOfWork, task_uid: str, after: int, size: int, kind: str = "", until: int | None = None
) -> Sequence[RowMapping]:
    """At most `size` events with a sequence in (after, until], in order."""
    query = select(task_events).where(task_events.c.task_uid == task_uid, task_events.c.sequence > after)
    if kind:
        query = query.where(task_events.c.kind == kind)
    if until is not None:
        query = query.where(task_events.c.sequence <= until)
    connection = await uow.connection()
    return (await connection.execute(query.order_by(task_events.c.sequence).limit(size))).mappings().all()


async def newest_events(uow: UnitOfWork, task_uid: str, before: int, size: int, kind: str) -> Sequence[RowMapping]:
    """At most `size` events of a kind with a smaller sequence, newest first."""
    columns = task_events.c
    query = select(task_events).where(columns.task_uid == task_uid, columns.kind == kind, columns.sequence < before)
    connection = await uow.connection()
    return (await connection.execute(query.order_by(columns.sequence.desc()).limit(size))).mappings().all()


def _tenant(uow: UnitOfWork) -> tuple[ColumnElement[bool], ...]:
    # The first wall; row-level security is the second.
    return () if uow.org == ANY_ORG else (tasks.c.org == uow.org,)


# For workers, across organizations, each write guarded by the lease.


async def claim(
    uow: UnitOfWork, owner: str, kinds: Sequence[str], seconds: float, limit: int
) -> list[tuple[Lease, Task]]:
    """Takes tasks that wait, or whose worker is gone: in the order in which they became due, which is when they were
    created or, of one that was put off, when it was to be looked at again. So neither keeps the other waiting."""
    where = [tasks.c.state.in_(("QUEUED", "RUNNING")), tasks.c.kind.in_(kinds)]
    order = [func.coalesce(tasks.c.lease_expires_at, tasks.c.create_time)]
    connection = await uow.connection()
    claimed = await leases.claim(connection, tasks, owner, seconds, where=where, order_by=order, limit=limit)
    return [(lease, Task.from_row(row)) for lease, row in claimed]


async def lock(uow: UnitOfWork, lease: Lease) -> Task:
    """Locks the task for the transaction in which its worker writes.

    Raises:
        LeaseLost: Somebody else has it.
    """
    row = await leases.lock(await uow.connection(), tasks, lease)
    if row is None:
        raise LeaseLost
    return Task.from_row(row)


async def record(
    uow: UnitOfWork, lease: Lease, task: Task, carried: Sequence[Json], seconds: float, **values: Any
) -> Task:
    """Writes what a carrier reported, and renews the lease.

    Args:
        task: As `lock` gave it in this transaction.
        carried: The carrier's events in order.
        seconds: The lease holds for so long from now; 0 leaves it.
        values: Columns to change.
    """
    connection = await uow.connection()
    first = task.sequence + 1
    if carried and task.sequence > _MOST_EVENTS:
        values["carrier_cursor"] = carried[-1]["cursor"]
        carried = ()
    if carried:
        rows = [_event_row(task, first + index, event) for index, event in enumerate(carried)]
        await connection.execute(insert(task_events), rows)
        values["carrier_cursor"] = carried[-1]["cursor"]
    statement = (
        update(tasks)
        .where(leases.held(tasks, lease))
        .values(**_CHANGED, sequence=first + len(carried), **values)
        .returning(tasks)
    )
    changed = Task.from_row((await connection.execute(statement)).mappings().one())
    if seconds:
        await leases.renew(connection, tasks, lease, seconds)
    return changed


async def renew(uow: UnitOfWork, lease: Lease, seconds: float) -> Wishes:
    """Renews the lease; what somebody asked of the task.

    Raises:
        LeaseLost: Somebody else has it.
    """
    connection = await uow.connection()
    if not await leases.renew(connection, tasks, lease, seconds):
        raise LeaseLost
    return await wishes(uow, lease)


async def wishes(uow: UnitOfWork, lease: Lease) -> Wishes:
    """What somebody asked of the task.

    Raises:
        LeaseLost: Somebody else has it.
    """
    columns = select(tasks.c.cancel_requested, tasks.c.pause_requested)
    row = (await (await uow.connection()).execute(columns.where(leases.held(tasks, lease)))).one_or_none()
    if row is None:
        raise LeaseLost
    return Wishes(row.cancel_requested, row.pause_requested)


async def release(uow: UnitOfWork, lease: Lease) -> None:
    """Gives the task back, for the next worker to adopt at once."""
    await leases.release(await uow.connection(), tasks, lease)


async def postpone(uow: UnitOfWork, lease: Lease, seconds: float) -> None:
    """Gives the task back, for whoever looks after so many seconds, or after somebody has changed it."""
    await leases.postpone(await uow.connection(), tasks, lease, seconds)


async def hurry(uow: UnitOfWork, org: str, reservations: Sequence[str]) -> None:
    """Tasks that were put off are looked at at once, as there is room for them now; a worker that is about to put one
    off sees by its sequence that it need not."""
    if not reservations:
        return
    waiting = select(tasks.c.uid).where(
        tasks.c.org == org,
        tasks.c.state == literal_column("'QUEUED'"),
        tasks.c.reservation.in_(reservations),
    )
    # Locked in order: of two workers that do this at once, one waits for the other.
    locked = waiting.order_by(tasks.c.uid).with_for_update()
    connection = await uow.connection()
    await connection.execute(
        update(tasks).where(tasks.c.uid.in_(locked)).values(sequence=tasks.c.sequence + 1, lease_expires_at=_IF_LEASED)
    )
    await connection.execute(_NOTIFY)


async def carriers(uow: UnitOfWork) -> set[str]:
    """Names of the carriers of all tasks that have not ended."""
    query = select(tasks.c.carrier).where(tasks.c.state.in_(("QUEUED", "RUNNING")))
    return set((await (await uow.connection()).execute(query)).scalars())


STARTED = func.coalesce(tasks.c.start_time, _NOW)
FINISHED = {
    "end_time": _NOW,
    "eta": literal(None, time_type()),
}


def _event_row(task: Task, sequence: int, event: Json) -> Json:
    payload = log_payload(event) if event["kind"] == "log" else metrics_payload(event)
    return {
        "task_uid": task.uid,
        "sequence": sequence,
        "org": task.org,
        "kind": event["kind"],
        "time": datetime.fromisoformat(event["time"]),
        "attempt": task.attempt,
        "payload": payload,
    }
