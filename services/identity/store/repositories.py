"""Identity's rows: who there is, with which keys, and what they used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from libs.common.db.repository import Repository
from libs.common.db.uow import UnitOfWork
from services.identity.domain.keys import ApiKey
from services.identity.domain.people import Department, Organization, ServiceAccount, Subject, User
from services.identity.domain.secrets import Secret
from services.identity.domain.usage import UsageEntry, UsageSum
from services.identity.store import tables


class Organizations(Repository[Organization]):
    table = tables.organizations
    entity = Organization


class Departments(Repository[Department]):
    table = tables.departments
    entity = Department

    async def ancestors(self, name: str, limit: int, *, deleted: bool = False) -> list[str]:
        """`name` and the departments above it, nearest first; more than `limit` are not walked.

        Args:
            deleted: also when departments on the way are; otherwise that is NOT_FOUND.
        """
        found: list[str] = []
        while name and len(found) <= limit:
            found.append(name)
            name = (await self.get(name, deleted=deleted)).parent_department
        return found

    async def holds_anything(self, name: str) -> bool:
        """Whether departments or users lie in it."""
        below = select(tables.departments.c.uid).where(
            tables.departments.c.parent_department == name, tables.departments.c.delete_time.is_(None)
        )
        people = select(tables.users.c.uid).where(
            tables.users.c.department == name, tables.users.c.delete_time.is_(None)
        )
        return (await (await self.uow.connection()).execute(select(below.exists() | people.exists()))).scalar_one()


class Users(Repository[User]):
    table = tables.users
    entity = User


class ServiceAccounts(Repository[ServiceAccount]):
    table = tables.service_accounts
    entity = ServiceAccount


class ApiKeys(Repository[ApiKey]):
    table = tables.api_keys
    entity = ApiKey

    async def with_key_id(self, key_id: str) -> ApiKey | None:
        """The key with this public id."""
        found = await self.fetch(self.query().where(self.table.c.key_id == key_id))
        return found[0] if found else None


class Secrets(Repository[Secret]):
    table = tables.secrets
    entity = Secret


async def subject_named(uow: UnitOfWork, name: str) -> Subject | None:
    """The user or service account with this resource name."""
    repository = ServiceAccounts(uow) if "/serviceAccounts/" in name else Users(uow)
    return await repository.find(name)


# Of NOTIFY, when a revocation is committed.
REVOCATIONS_CHANNEL = "revocations"


class Revocations:
    """Names whose tokens must be refused."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def add(self, org: str, name: str, time: datetime) -> None:
        """Refuses tokens of `name` issued until `time`. One transaction at a time, so that ids appear in their order:
        a watcher that has seen an id would never look for a smaller one."""
        connection = await self._uow.connection()
        await connection.execute(select(func.pg_advisory_xact_lock(_REVOCATION_LOCK)))
        await connection.execute(insert(tables.revocations).values(org=org, name=name, time=time))
        await connection.execute(select(func.pg_notify(REVOCATIONS_CHANNEL, "")))

    async def since(self, time: datetime, after_id: int) -> list[tuple[int, str, datetime]]:
        """(id, name, time) of those at or after `time` whose id is larger, oldest first."""
        table = tables.revocations
        query = select(table.c.id, table.c.name, table.c.time).where(table.c.time >= time, table.c.id > after_id)
        if self._uow.org != "*":
            query = query.where(table.c.org == self._uow.org)
        rows = await (await self._uow.connection()).execute(query.order_by(table.c.id))
        return [(row.id, row.name, row.time) for row in rows]


class SigningKeys:
    """The keys that sign tokens, sealed."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def all(self) -> list[tuple[str, bytes, datetime]]:
        """(kid, sealed key, creation), newest first. Locks nothing."""
        table = tables.signing_keys
        query = select(table.c.kid, table.c.sealed, table.c.create_time).order_by(table.c.create_time.desc())
        rows = await (await self._uow.connection()).execute(query)
        return [(row.kid, row.sealed, row.create_time) for row in rows]

    async def lock(self) -> None:
        """Makes other processes that would create a key wait until this unit of work ends."""
        await (await self._uow.connection()).execute(select(func.pg_advisory_xact_lock(_SIGNING_LOCK)))

    async def add(self, kid: str, sealed: bytes, time: datetime) -> None:
        await (await self._uow.connection()).execute(
            insert(tables.signing_keys).values(kid=kid, sealed=sealed, create_time=time)
        )

    async def delete_before(self, time: datetime) -> None:
        await (await self._uow.connection()).execute(
            delete(tables.signing_keys).where(tables.signing_keys.c.create_time < time)
        )


# Any constant numbers that no other advisory lock of this database has.
_SIGNING_LOCK = 7_101_001
_REVOCATION_LOCK = 7_101_002


async def spend_bootstrap(uow: UnitOfWork, digest: str, time: datetime) -> bool:
    """Marks a bootstrap token as spent; False if it was."""
    statement = insert(tables.spent_bootstraps).values(digest=digest, time=time).on_conflict_do_nothing()
    return (await (await uow.connection()).execute(statement)).rowcount == 1


class UsageLedger:
    """Entries of the ledger."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def write(self, entries: Sequence[UsageEntry]) -> int:
        """Writes entries that are not there yet; how many that were."""
        statement = insert(tables.usage).values([asdict(entry) for entry in entries]).on_conflict_do_nothing()
        return (await (await self._uow.connection()).execute(statement)).rowcount

    async def page(
        self, org: str, start: datetime | None, end: datetime | None, limit: int, offset: int
    ) -> list[UsageEntry]:
        """Newest first."""
        query = select(tables.usage).where(*_within(org, start, end))
        query = query.order_by(tables.usage.c.time.desc(), tables.usage.c.id).limit(limit).offset(offset)
        rows = (await (await self._uow.connection()).execute(query)).mappings()
        return [UsageEntry(**dict[str, Any](row)) for row in rows]

    async def sums(self, org: str, start: datetime | None, end: datetime | None, group_by: str) -> list[UsageSum]:
        """Sums by `model`, `api_key` or `subject`, most requests first."""
        table = tables.usage
        key: Any = table.c[group_by]
        query = (
            select(
                key.label("key"),
                func.count().label("requests"),
                func.sum(table.c.prompt_tokens).label("prompt_tokens"),
                func.sum(table.c.completion_tokens).label("completion_tokens"),
                func.count().filter(table.c.outcome != "ok").label("errors"),
            )
            .where(*_within(org, start, end))
            .group_by(key)
            .order_by(func.count().desc(), key)
            .limit(1000)
        )
        rows = await (await self._uow.connection()).execute(query)
        return [
            UsageSum(
                key=row.key,
                requests=row.requests,
                prompt_tokens=int(row.prompt_tokens),
                completion_tokens=int(row.completion_tokens),
                errors=row.errors,
            )
            for row in rows
        ]


def _within(org: str, start: datetime | None, end: datetime | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [tables.usage.c.org == org]
    if start is not None:
        conditions.append(tables.usage.c.time >= start)
    if end is not None:
        conditions.append(tables.usage.c.time < end)
    return conditions
