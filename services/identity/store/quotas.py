"""Quotas and the ledger that jobs reserve in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, delete, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from libs.common.db.repository import Repository
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from services.identity.domain.people import MAX_DEPARTMENT_DEPTH
from services.identity.domain.quotas import Needs, Quota, Reservation, Spent, State, month_of
from services.identity.store import tables
from services.identity.store.repositories import Departments, Users

# Any constant number that no other advisory lock of this database has, with the organization behind it.
_LEDGER_LOCK = 7_101_003
# A settled reservation refuses a late asker for so long, and is shown in lists; one that waits keeps its place.
_KEPT = timedelta(days=30)
_LIVE = (State.WAITING, State.HELD)
_SAME = ("id", "org", "task", "target", "subject", "waiting_for", "cpu_seconds", "gpu_seconds", "kept_bytes")
_TIMES = ("ask_time", "renew_time", "start_time", "booked_time", "end_time")


class Quotas(Repository[Quota]):
    table = tables.quotas
    entity = Quota

    async def binding(self) -> list[Quota]:
        """All that bind in the organization; they are few."""
        return await self.fetch(self.query().where(self.table.c.delete_time.is_(None)).order_by(self.table.c.name))

    async def require_free(self, scope: str) -> None:
        """Raises ALREADY_EXISTS when the scope has a quota."""
        taken = self.query().where(self.table.c.scope == scope, self.table.c.delete_time.is_(None))
        for other in await self.fetch(taken):
            raise DomainError("ALREADY_EXISTS", f"{scope} has a quota: {other.name}.", name=other.name)


class Ledger:
    """Reservations of one organization, and what was used in each month."""

    def __init__(self, uow: UnitOfWork, org: str) -> None:
        self._uow = uow
        self._org = org

    async def lock(self) -> None:
        """One transaction of an organization at a time decides: none sees room that another one takes."""
        lock = select(func.pg_advisory_xact_lock(_LEDGER_LOCK, func.hashtext(self._org)))
        await (await self._uow.connection()).execute(lock)

    async def scopes_of(self, subject: str) -> list[str]:
        """Everything that a job of a subject counts for: organization, departments from the top, the subject."""
        organization = f"orgs/{self._org}"
        if subject.startswith("services/"):
            return [organization]
        name, above = f"{organization}/{subject}", list[str]()
        if subject.startswith("users/"):
            user = await Users(self._uow).find(name, deleted=True)
            if user is not None and user.department:
                # Of somebody who has left, the department may be gone too.
                above = await Departments(self._uow).ancestors(user.department, MAX_DEPARTMENT_DEPTH, deleted=True)
        return [organization, *reversed(above), name]

    async def find(self, reservation: str) -> Reservation | None:
        """The reservation with this id."""
        rows = await self._rows(self._query().where(tables.quota_reservations.c.id == reservation))
        return rows[0] if rows else None

    async def live(self) -> list[Reservation]:
        """Those that hold or wait, in the order in which they came."""
        table = tables.quota_reservations
        return await self._rows(self._query().where(table.c.state.in_(_LIVE)).order_by(table.c.number))

    async def page(self, scope: str, settled: bool, size: int, before: int) -> list[Reservation]:
        """Newest first, with numbers below `before`; 0: from the newest."""
        table = tables.quota_reservations
        query = self._query()
        if not settled:
            query = query.where(table.c.state != State.SETTLED)
        if scope:
            query = query.where(table.c.scopes.contains([scope]))
        if before:
            query = query.where(table.c.number < before)
        return await self._rows(query.order_by(table.c.number.desc()).limit(size))

    async def add(self, reservation: Reservation) -> None:
        """Stores a new one, behind all others. Another one with its id, stored meanwhile, is a CONFLICT."""
        statement = insert(tables.quota_reservations).values(_row(reservation)).on_conflict_do_nothing()
        if not (await (await self._uow.connection()).execute(statement)).rowcount:
            raise DomainError("CONFLICT", f"{reservation.id} was changed at the same time.", name=reservation.id)

    async def save(self, reservation: Reservation) -> None:
        """Stores a changed one."""
        table = tables.quota_reservations
        change = update(table).where(table.c.org == self._org, table.c.id == reservation.id)
        await (await self._uow.connection()).execute(change.values(_row(reservation)))

    async def book(self, scopes: Sequence[str], used: tuple[float, float], moment: datetime) -> None:
        """Adds core-seconds and GPU-seconds to the month of the moment."""
        table = tables.quota_months
        if not any(used):
            return
        rows = [
            {
                "org": self._org,
                "scope": scope,
                "month": month_of(moment),
                "cpu_seconds": used[0],
                "gpu_seconds": used[1],
            }
            # In one order, so that no two transactions wait for each other.
            for scope in sorted(scopes)
        ]
        statement = insert(table).values(rows)
        sums = {name: table.c[name] + statement.excluded[name] for name in ("cpu_seconds", "gpu_seconds")}
        merged = statement.on_conflict_do_update(index_elements=["org", "scope", "month"], set_=sums)
        await (await self._uow.connection()).execute(merged)

    async def spent(self, now: datetime) -> dict[str, Spent]:
        """What each scope has used this month."""
        table = tables.quota_months
        query = select(table).where(table.c.org == self._org, table.c.month == month_of(now))
        rows = await (await self._uow.connection()).execute(query)
        return {row.scope: Spent(row.cpu_seconds / 3600, row.gpu_seconds / 3600) for row in rows}

    async def keep(self, scopes: Sequence[str], more: int) -> None:
        """Adds bytes to what each scope keeps of storage; below 0: takes them away."""
        table = tables.quota_storage
        if not more or not scopes:
            return
        rows = [{"org": self._org, "scope": scope, "kept_bytes": more} for scope in sorted(scopes)]
        statement = insert(table).values(rows)
        sums = {"kept_bytes": table.c.kept_bytes + statement.excluded["kept_bytes"]}
        merged = statement.on_conflict_do_update(index_elements=["org", "scope"], set_=sums)
        await (await self._uow.connection()).execute(merged)

    async def kept(self) -> dict[str, int]:
        """Bytes of storage that each scope keeps."""
        table = tables.quota_storage
        query = select(table).where(table.c.org == self._org, table.c.kept_bytes > 0)
        return {row.scope: row.kept_bytes for row in await (await self._uow.connection()).execute(query)}

    async def purge(self, now: datetime) -> None:
        """Forgets what was settled long ago and keeps nothing, and what nobody has asked for since."""
        columns = tables.quota_reservations.c
        old = (columns.org == self._org, columns.renew_time < now - _KEPT)
        # Written out, as in the predicate of the index.
        done = (columns.state != literal_column("'HELD'"), columns.kept_bytes == literal_column("0"))
        await (await self._uow.connection()).execute(delete(tables.quota_reservations).where(*old, *done))

    def _query(self) -> Any:
        return select(tables.quota_reservations).where(tables.quota_reservations.c.org == self._org)

    async def _rows(self, query: Any) -> list[Reservation]:
        rows = await (await self._uow.connection()).execute(query)
        return [_reservation(row) for row in rows.mappings()]


def _reservation(row: RowMapping) -> Reservation:
    needs = Needs(row["cpus"], row["gpus"], row["memory_bytes"], row["seconds"], row["storage_bytes"])
    times = {name: row[name] and row[name].astimezone(UTC) for name in _TIMES}
    return Reservation(
        **{name: row[name] for name in (*_SAME, "number")},
        **times,
        scopes=list(row["scopes"]),
        needs=needs,
        state=State(row["state"]),
    )


def _row(reservation: Reservation) -> dict[str, Any]:
    needs = reservation.needs
    return {
        **{name: getattr(reservation, name) for name in (*_SAME, *_TIMES, "scopes")},
        "state": str(reservation.state),
        "cpus": needs.cpus,
        "gpus": needs.gpus,
        "memory_bytes": needs.memory_bytes,
        "seconds": needs.seconds,
        "storage_bytes": needs.storage_bytes,
    }
