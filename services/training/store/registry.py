"""Aliases of model versions, and when deployments answered with them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, or_, select, update

from libs.common.db.repository import Repository
from libs.common.db.uow import ANY_ORG, UnitOfWork
from services.training.domain.models import AliasChange, Deployed, ModelAlias
from services.training.store import tables
from services.training.store.repositories import position_of


class ModelAliases(Repository[ModelAlias]):
    table = tables.model_aliases
    entity = ModelAlias

    async def of_version(self, project: str, version: str) -> list[ModelAlias]:
        """The aliases that stand for a version, newest first; a page of them at most."""
        found, _ = await self.list(project, 1000, filters=[self.table.c.model_version == version])
        return found

    async def keep_change(self, project: str, change: AliasChange) -> None:
        """Adds a move to the history."""
        row = {**asdict(change), "org": project.split("/")[1], "model_project": project}
        await (await self.uow.connection()).execute(insert(tables.model_alias_changes).values(row))

    async def changes(self, project: str, page_size: int, after: str) -> tuple[list[AliasChange], str]:
        """One page of the moves of a project's aliases, oldest first, and the position for the next page."""
        table = tables.model_alias_changes
        query = select(table).where(table.c.model_project == project, table.c.id > position_of(after))
        if self.uow.org != ANY_ORG:
            query = query.where(table.c.org == self.uow.org)
        query = query.order_by(table.c.id).limit(page_size + 1)
        rows = list((await (await self.uow.connection()).execute(query)).mappings())
        found: list[AliasChange] = []
        for row in rows[:page_size]:
            values = {name: row[name] for name in AliasChange.__dataclass_fields__}
            found.append(AliasChange(**values | {"time": row["time"].astimezone(UTC)}))
        return found, str(rows[page_size - 1]["id"]) if len(rows) > page_size else ""


class ModelDeployments:
    """Times in which deployments answered with versions."""

    _table = tables.model_deployments

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def began(self, org: str, deployment: str, version: str, time: datetime) -> str:
        """A deployment answers with a version from now on; the version that it answered with before, or nothing."""
        columns = self._table.c
        query = select(columns.model_version).where(columns.deployment == deployment, columns.stop_time.is_(None))
        before: str = (await (await self._uow.connection()).execute(query)).scalar() or ""
        if before == version:
            return ""
        await self.ended(deployment, time)
        row = {
            "org": org,
            "model_project": version.rpartition("/versions/")[0],
            "model_version": version,
            "deployment": deployment,
            "live_time": time,
        }
        await (await self._uow.connection()).execute(insert(self._table).values(row))
        return before

    async def ended(self, deployment: str, time: datetime) -> str:
        """A deployment answers no more; the version that it answered with, or nothing."""
        columns = self._table.c
        change = update(self._table).where(columns.deployment == deployment, columns.stop_time.is_(None))
        change = change.values(stop_time=time).returning(columns.model_version)
        found: str | None = (await (await self._uow.connection()).execute(change)).scalar()
        return found or ""

    async def live(self, version: str) -> bool:
        """Whether any deployment answers with a version."""
        columns = self._table.c
        query = select(columns.id).where(columns.model_version == version, columns.stop_time.is_(None), *self._own())
        return (await (await self._uow.connection()).execute(query.limit(1))).first() is not None

    async def newest_live(self, project: str) -> str:
        """The version of a project that went live last and still answers; empty: none."""
        columns = self._table.c
        query = select(columns.model_version).where(columns.model_project == project, columns.stop_time.is_(None))
        query = query.where(*self._own()).order_by(columns.id.desc()).limit(1)
        found: str | None = (await (await self._uow.connection()).execute(query)).scalar()
        return found or ""

    async def list(
        self, project: str, page_size: int, after: str = "", *, version: str = "", at: datetime | None = None
    ) -> tuple[list[Deployed], str]:
        """One page, newest first, and the position for the next page.

        Args:
            version: only of this one.
            at: only those that answered then.
        """
        columns = self._table.c
        query = select(self._table).where(columns.model_project == project, *self._own())
        if after:
            query = query.where(columns.id < position_of(after))
        if version:
            query = query.where(columns.model_version == version)
        if at is not None:
            query = query.where(columns.live_time <= at, or_(columns.stop_time.is_(None), columns.stop_time > at))
        query = query.order_by(columns.id.desc()).limit(page_size + 1)
        rows = list((await (await self._uow.connection()).execute(query)).mappings())
        found = [
            Deployed(
                row["deployment"],
                row["model_version"],
                row["live_time"].astimezone(UTC),
                row["stop_time"] and row["stop_time"].astimezone(UTC),
            )
            for row in rows[:page_size]
        ]
        return found, str(rows[page_size - 1]["id"]) if len(rows) > page_size else ""

    def _own(self) -> tuple[Any, ...]:
        return () if self._uow.org == ANY_ORG else (self._table.c.org == self._uow.org,)
