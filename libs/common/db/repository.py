"""Aggregates in and out of their table. Services subclass `Repository`; all their SQL is in their `store/`."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, RowMapping, Select, Table, and_, insert, or_, select, update

from libs.common.db import errors
from libs.common.db.tables import STANDARD_COLUMNS
from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError, Parent, Resource, Secrecy

T = TypeVar("T", bound=Resource)


class Repository(Generic[T]):
    """Rows of one kind of resource, within the organization of the unit of work.

    A subclass names its `table` and `entity`. Each further column of the table is the attribute of the entity with its
    name; where that does not hold, it overrides `to_row` and `from_row`.
    """

    table: ClassVar[Table]
    entity: ClassVar[type[Any]]

    def __init__(self, uow: UnitOfWork) -> None:
        self.uow = uow

    def to_row(self, entity: T) -> dict[str, Any]:
        """The columns of an entity, without those that `resource_row` gives."""
        return {column.name: _plain(getattr(entity, column.name)) for column in self._own_columns()}

    def from_row(self, row: RowMapping) -> T:
        """The entity of a row."""
        own = {column.name: row[column] for column in self._own_columns()}
        return self.entity(**resource_fields(row), **own)

    def _own_columns(self) -> list[Any]:
        return [column for column in self.table.c if column.name not in STANDARD_COLUMNS]

    def query(self) -> Select[Any]:
        """Every row of the organization, deleted ones too; where queries of subclasses begin."""
        return select(self.table).where(*self._tenant())

    def _tenant(self) -> tuple[ColumnElement[bool], ...]:
        # The first wall; row-level security is the second.
        return () if self.uow.org == ANY_ORG else (self.table.c.org == self.uow.org,)

    async def find(self, name: str, *, deleted: bool = False, for_update: bool = False) -> T | None:
        """The resource with this name, or None.

        Args:
            name: resource name.
            deleted: also when it is deleted softly.
            for_update: locks the row until the end of the transaction.
        """
        query = self.query().where(self.table.c.name == name)
        if not deleted:
            query = query.where(self.table.c.delete_time.is_(None))
        found = await self.fetch(query.with_for_update() if for_update else query)
        return found[0] if found else None

    async def get(self, name: str, *, deleted: bool = False, for_update: bool = False) -> T:
        """The resource with this name. Raises NOT_FOUND."""
        entity = await self.find(name, deleted=deleted, for_update=for_update)
        if entity is None:
            raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
        return entity

    async def fetch(self, query: Select[Any]) -> list[T]:
        """The entities of a query that began with `query()`."""
        connection = await self.uow.connection()
        return [self.from_row(row) for row in (await connection.execute(query)).mappings()]

    async def list(
        self,
        parent: str | None,
        page_size: int,
        after: str = "",
        show_deleted: bool = False,
        filters: Sequence[ColumnElement[bool]] = (),
        oldest_first: bool = False,
    ) -> tuple[list[T], str]:
        """One page, newest first unless said otherwise.

        Args:
            parent: name of the parent; None: whatever the parent.
            page_size: rows at most, positive.
            after: position that the page before gave; empty: the first page.
            show_deleted: also those deleted softly.
            filters: further conditions on the columns of `table`.

        Returns:
            The entities, and the position for the next page, empty at the end.

        Raises:
            DomainError: PAGE_TOKEN_INVALID.
        """
        columns = self.table.c
        query = self.query().where(*filters)
        if parent is not None:
            query = query.where(columns.parent == parent)
        if not show_deleted:
            query = query.where(columns.delete_time.is_(None))
        if after:
            moment, uid = _parse_position(after)
            later = columns.create_time > moment if oldest_first else columns.create_time < moment
            same = columns.uid < uid if oldest_first else columns.uid > uid
            query = query.where(or_(later, and_(columns.create_time == moment, same)))
        newest = (columns.create_time.desc(), columns.uid)
        order = (columns.create_time, columns.uid.desc()) if oldest_first else newest
        rows = await self.fetch(query.order_by(*order).limit(page_size + 1))
        page = rows[:page_size]
        return page, position(page[-1]) if len(rows) > page_size else ""

    async def insert(self, entity: T) -> T:
        """Stores a new resource. Raises ALREADY_EXISTS, also while one of its name is deleted softly."""
        self._require_tenant(entity)
        row = {**resource_row(entity), **self.to_row(entity), "version": 1}
        try:
            await (await self.uow.connection()).execute(insert(self.table).values(row))
        except DomainError as error:
            if errors.sqlstate_of(error) == errors.UNIQUE_VIOLATION:
                raise DomainError("ALREADY_EXISTS", f"{entity.name} exists already.", name=entity.name) from error
            raise
        entity.version = 1
        return entity

    async def save(self, entity: T) -> T:
        """Stores a changed resource. Raises CONFLICT if somebody else changed it since it was read."""
        self._require_tenant(entity)
        seen = entity.version
        row = {**resource_row(entity), **self.to_row(entity), "version": seen + 1}
        change = update(self.table).where(
            self.table.c.name == entity.name, self.table.c.version == seen, *self._tenant()
        )
        if (await (await self.uow.connection()).execute(change.values(row))).rowcount == 0:
            raise DomainError("CONFLICT", f"{entity.name} was changed at the same time.", name=entity.name)
        entity.version = seen + 1
        return entity

    async def soft_delete(self, entity: T, now: datetime) -> T:
        """Deletes a resource so that `undelete` can bring it back."""
        entity.delete_time = entity.update_time = now
        return await self.save(entity)

    async def undelete(self, entity: T, now: datetime) -> T:
        """Brings a deleted resource back. Raises STATE_CONFLICT if it is not deleted."""
        if entity.delete_time is None:
            message = f"{entity.name} is not deleted."
            raise DomainError("STATE_CONFLICT", message, name=entity.name, state="active", wanted="deleted")
        entity.delete_time, entity.update_time = None, now
        return await self.save(entity)

    def _require_tenant(self, entity: T) -> None:
        if self.uow.org not in (ANY_ORG, entity.org):
            raise DomainError("NOT_FOUND", f"{entity.name} does not exist.", name=entity.name)


def resource_row(resource: Resource) -> dict[str, Any]:
    """The standard columns of a resource."""
    return {
        "uid": resource.uid,
        "org": resource.org,
        "name": resource.name,
        "id": resource.id,
        "parent": resource.parent,
        "version": resource.version,
        "state": str(resource.state),
        "create_time": resource.create_time,
        "update_time": resource.update_time,
        "delete_time": resource.delete_time,
        "labels": resource.labels,
        "secrecy": int(resource.secrecy),
        "lineage": [dataclasses.asdict(parent) for parent in resource.lineage],
        "creator": resource.creator,
    }


def resource_fields(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The standard fields of a resource from its row, as keyword arguments of the entity."""
    return {
        "uid": row["uid"],
        "name": row["name"],
        "version": row["version"],
        "state": row["state"],
        "create_time": row["create_time"].astimezone(UTC),
        "update_time": row["update_time"].astimezone(UTC),
        "delete_time": row["delete_time"] and row["delete_time"].astimezone(UTC),
        "labels": dict(row["labels"]),
        "secrecy": Secrecy(row["secrecy"]),
        "lineage": [Parent(**parent) for parent in row["lineage"]],
        "creator": row["creator"],
    }


def _plain(value: Any) -> Any:
    """Dataclasses inside an entity are stored as JSON objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def position(entity: Resource) -> str:
    """Where a list goes on behind a resource."""
    return f"{entity.create_time.isoformat()} {entity.uid}"


def _parse_position(position: str) -> tuple[datetime, str]:
    moment, _, uid = position.partition(" ")
    try:
        return datetime.fromisoformat(moment), str(uuid.UUID(uid))
    except ValueError:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token") from None
