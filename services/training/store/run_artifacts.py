"""Files of outside runs: rows that name their parts in the blob store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, or_, select, update

from libs.common.blobs import Blob
from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError
from services.training.domain.trainings import TrainingRun
from services.training.store import tables

# Beside their paths, which a page of a list shows, nothing of them is read when a run is.
MOST_FILES = 10_000
# Sends that are under way for one path.
_MOST_UPLOADS = 16


@dataclass(frozen=True)
class Artifact:
    """A file of a run, or an upload of one.

    Attributes:
        parts: digests in their order.
    """

    path: str
    size: int
    parts: tuple[str, ...]
    complete: bool
    create_time: datetime


@dataclass(frozen=True)
class Child:
    """What lies right in a folder: a file, or a folder, whose size and time mean nothing."""

    name: str
    folder: bool
    size: int
    create_time: datetime


class RunArtifacts:
    """Files of one run.

    Args:
        run: locked where something is changed.
    """

    def __init__(self, uow: UnitOfWork, run: TrainingRun) -> None:
        self._uow = uow
        self._run = run

    async def append(
        self, path: str, upload_id: str, offset: int, part: Blob | None, last: bool, now: datetime
    ) -> Artifact:
        """Adds a part to an upload; the first one begins it.

        Raises:
            DomainError: OFFSET_MISMATCH if the upload stands elsewhere; TOO_LARGE for too many files or uploads.
        """
        connection, columns = await self._uow.connection(), tables.run_artifacts.c
        here = (*self._own(), columns.path == path, columns.upload_id == upload_id)
        row = (await connection.execute(select(tables.run_artifacts).where(*here).with_for_update())).mappings().first()
        received = row["size"] if row is not None else 0
        if offset != received or (row is not None and row["complete"]):
            message = f"{path} has {received} bytes of this upload, and the part begins at {offset}."
            raise DomainError("OFFSET_MISMATCH", message, offset=str(offset), received=str(received))
        parts: list[dict[str, Any]] = list(row["parts"]) if row is not None else []
        if part is not None:
            parts.append({"sha256": part.sha256, "size": part.size})
        values = {"parts": parts, "size": received + (part.size if part else 0), "complete": last}
        if row is None:
            await self._require_room(path)
            fixed = {"run_uid": self._run.uid, "org": self._run.org, "path": path, "upload_id": upload_id}
            await connection.execute(insert(tables.run_artifacts).values(**fixed, **values, create_time=now))
        else:
            await connection.execute(update(tables.run_artifacts).where(*here).values(values))
        if last:
            others = (*self._own(), columns.path == path, columns.upload_id != upload_id, columns.complete)
            await connection.execute(delete(tables.run_artifacts).where(*others))
        return _artifact({**values, "path": path, "create_time": row["create_time"] if row is not None else now})

    async def _require_room(self, path: str) -> None:
        connection, columns = await self._uow.connection(), tables.run_artifacts.c
        same = func.count().filter(columns.path == path)
        row = (await connection.execute(select(func.count(), same).where(*self._own()))).one()
        if row[0] >= MOST_FILES or row[1] >= _MOST_UPLOADS:
            limit, what = (MOST_FILES, "files") if row[0] >= MOST_FILES else (_MOST_UPLOADS, f"uploads of {path}")
            raise DomainError("TOO_LARGE", f"{self._run.name} has {limit:,} {what} already.", limit=str(limit))

    async def list(self, path: str, size: int, after: str) -> Sequence[Artifact]:
        """At most `size` complete files by path, behind one: that of a path and all below it; empty: all."""
        connection, columns = await self._uow.connection(), tables.run_artifacts.c
        query = select(tables.run_artifacts).where(*self._own(), columns.complete, columns.path > after)
        query = query.where(*self._below(path)).order_by(columns.path).limit(size)
        return [_artifact(row) for row in (await connection.execute(query)).mappings()]

    async def children(self, folder: str, size: int, after: str) -> Sequence[Child]:
        """At most `size` files and folders right in a folder by name, behind one; empty: in none."""
        connection, columns = await self._uow.connection(), tables.run_artifacts.c
        # Places in a text begin with 1.
        rest = func.substr(columns.path, len(folder) + 2 if folder else 1)
        name = func.split_part(rest, "/", 1).label("name")
        within = (columns.path.startswith(f"{folder}/", autoescape=True),) if folder else ()
        query = select(
            name,
            func.bool_or(func.strpos(rest, "/") > 0).label("folder"),
            func.max(columns.size).label("size"),
            func.max(columns.create_time).label("create_time"),
        ).where(*self._own(), columns.complete, *within, name > after)
        rows = await connection.execute(query.group_by(name).order_by(name).limit(size))
        return [Child(row.name, row.folder, row.size, row.create_time.astimezone(UTC)) for row in rows]

    async def get(self, path: str) -> Artifact:
        """A complete file. Raises NOT_FOUND."""
        connection, columns = await self._uow.connection(), tables.run_artifacts.c
        query = select(tables.run_artifacts).where(*self._own(), columns.complete, columns.path == path)
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise DomainError("NOT_FOUND", f"{self._run.name} has no file {path!r}.", name=f"{self._run.name}/{path}")
        return _artifact(row)

    async def remove(self, path: str) -> int:
        """Forgets the file of a path and all below it; how many there were. The sweep takes their parts."""
        connection = await self._uow.connection()
        removed = await connection.execute(delete(tables.run_artifacts).where(*self._own(), *self._below(path)))
        return removed.rowcount

    def _below(self, path: str) -> tuple[ColumnElement[bool], ...]:
        columns = tables.run_artifacts.c
        return (or_(columns.path == path, columns.path.startswith(f"{path}/", autoescape=True)),) if path else ()

    def _own(self) -> tuple[ColumnElement[bool], ...]:
        columns = tables.run_artifacts.c
        # The first wall; row-level security is the second.
        tenant = () if self._uow.org == ANY_ORG else (columns.org == self._uow.org,)
        return (columns.run_uid == self._run.uid, *tenant)


async def forget_broken_uploads(uow: UnitOfWork, before: datetime) -> None:
    """Drops uploads, of every organization, that were begun before a time and never completed."""
    columns = tables.run_artifacts.c
    old = delete(tables.run_artifacts).where(~columns.complete, columns.create_time < before)
    await (await uow.connection()).execute(old)


def _artifact(row: RowMapping | dict[str, Any]) -> Artifact:
    return Artifact(
        row["path"],
        row["size"],
        tuple(part["sha256"] for part in row["parts"]),
        row["complete"],
        row["create_time"].astimezone(UTC),
    )
