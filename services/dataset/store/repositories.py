"""The rows of the dataset service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import any_, delete, func, insert, literal, or_, select
from sqlalchemy.dialects.postgresql import ARRAY

from libs.common.auth.principal import Principal
from libs.common.db.repository import Repository
from libs.common.db.tables import uid_type
from libs.common.domain import DomainError
from services.dataset.domain.datasets import Dataset, Visibility, sees_all, share_names
from services.dataset.domain.exports import Export
from services.dataset.domain.findings import Findings
from services.dataset.domain.uploads import Upload, UploadPart, UploadState
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store import tables
from services.dataset.store.search import candidates, remember

# Any number that no other advisory lock of this database has.
_CHECK_LOCK = 20_009


class Datasets(Repository[Dataset]):
    table = tables.datasets
    entity = Dataset

    async def insert(self, entity: Dataset) -> Dataset:
        """Stores a new dataset. Raises ALREADY_EXISTS."""
        await super().insert(entity)
        await remember(self.uow, entity)
        return entity

    async def save(self, entity: Dataset) -> Dataset:
        """Stores a changed dataset. Raises CONFLICT."""
        await super().save(entity)
        await remember(self.uow, entity)
        return entity

    async def visible(
        self,
        name: str,
        principal: Principal,
        *,
        deleted: bool = False,
        for_update: bool = False,
        writing: bool = False,
    ) -> Dataset:
        """The dataset, if the principal may see it.

        Args:
            name: of the dataset.
            principal: who asks.
            deleted: also when it is deleted softly.
            for_update: locks the row; implies `writing`.
            writing: only for somebody who may change it.

        Raises:
            DomainError: NOT_FOUND; ROLE_MISSING for somebody who may only read it.
        """
        dataset = await self.get(name, deleted=deleted, for_update=for_update)
        if not dataset.is_visible_to(principal.org, principal.subject, principal.role, principal.department):
            raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)
        if for_update or writing:
            dataset.require_writable(principal.subject, principal.role)
        return dataset

    async def list_visible(
        self, parent: str, principal: Principal, page_size: int, after: str, show_deleted: bool, wanted: Wanted
    ) -> tuple[list[Dataset], str]:
        """One page of those that the principal may see and that are wanted."""
        columns = self.table.c
        filters = tables.having_words(
            wanted.search, columns.id, columns.display_name, columns.description, columns.source
        )
        if wanted.type:
            filters.append(columns.type == wanted.type)
        if wanted.project_space:
            filters.append(columns.project_space == wanted.project_space)
        if wanted.labels:
            filters.append(columns.labels.contains(dict(wanted.labels)))
        if wanted.search.strip() or wanted.labels:
            named = await candidates(self.uow, parent.split("/")[1], wanted.search, wanted.labels)
            if named is not None:
                filters.append(columns.uid == any_(literal(named, ARRAY(uid_type()))))
        if not sees_all(principal.subject, principal.role):
            names = share_names(principal.org, principal.subject, principal.department)
            shared = columns.shared_with.overlap(sorted(names))
            own = or_(columns.visibility != Visibility.USER, columns.creator == principal.subject)
            filters.append(or_(own, shared))
        return await self.list(parent, page_size, after, show_deleted, filters, wanted.oldest_first)


@dataclass(frozen=True)
class Wanted:
    """Which datasets a list is to have, newest first unless said otherwise; what is empty does not matter.

    Attributes:
        search: text in id, display name, description or source, in any case.
        type: value of `DatasetType`.
        labels: all of them.
    """

    search: str = ""
    type: int = 0
    project_space: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    oldest_first: bool = False


class DatasetVersions(Repository[DatasetVersion]):
    table = tables.dataset_versions
    entity = DatasetVersion

    async def tagged(self, dataset: str, tags: Iterable[str]) -> list[DatasetVersion]:
        """The versions of a dataset that have one of these tags."""
        wanted = list(tags)
        if not wanted:
            return []
        return await self.fetch(self.query().where(self.table.c.parent == dataset, tables.tags_overlap(wanted)))

    async def manifests(self) -> set[str]:
        """The manifests of all versions, for the garbage collector."""
        connection = await self.uow.connection()
        return set((await connection.execute(select(self.table.c.manifest_digest))).scalars())


class NewestFindings(Repository[Findings]):
    entity = Findings

    async def put(self, found: Findings) -> None:
        """Stores the newest findings of their name in place of those before."""
        before = await self.find(found.name, for_update=True)
        if before is None:
            try:
                async with (await self.uow.connection()).begin_nested():
                    await self.insert(found)
                return
            except DomainError as error:
                if error.reason != "ALREADY_EXISTS":
                    raise
            # Another task came first, just now.
            before = await self.get(found.name, for_update=True)
        before.figures, before.task, before.update_time = found.figures, found.task, found.update_time
        await self.save(before)


class Profiles(NewestFindings):
    table = tables.profiles


class LeakageChecks(NewestFindings):
    table = tables.leakage_checks

    async def lock(self, name: str) -> None:
        """Until the transaction ends nobody else begins this check."""
        lock = select(func.pg_advisory_xact_lock(_CHECK_LOCK, func.hashtext(name)))
        await (await self.uow.connection()).execute(lock)


class WorkReports(NewestFindings):
    table = tables.work_reports


class Exports(Repository[Export]):
    table = tables.exports
    entity = Export

    async def alive(self, name: str, now: datetime) -> Export:
        """The export, if it has not expired. Raises NOT_FOUND."""
        export = await self.get(name)
        export.require_alive(now)
        return export

    async def find_made(self, version: str, choices: str, until: datetime) -> Export | None:
        """The export of a version with these choices that lives longest, if that is beyond `until`."""
        columns = self.table.c
        query = self.query().where(columns.parent == version, columns.choices == choices, columns.expire_time > until)
        found = await self.fetch(query.order_by(columns.expire_time.desc()).limit(1))
        return found[0] if found else None

    async def delete_expired(self, now: datetime) -> int:
        """Deletes the exports that have expired; returns how many."""
        expired = delete(self.table).where(self.table.c.expire_time <= now)
        return (await (await self.uow.connection()).execute(expired)).rowcount

    async def manifests(self) -> set[str]:
        """The manifests of all exports, for the garbage collector."""
        connection = await self.uow.connection()
        return set((await connection.execute(select(self.table.c.manifest_digest))).scalars())


class Uploads(Repository[Upload]):
    table = tables.uploads
    entity = Upload

    async def alive(self, name: str, now: datetime, *, for_update: bool = False) -> Upload:
        """The upload, if it has not expired. Raises NOT_FOUND."""
        upload = await self.get(name, for_update=for_update)
        upload.require_alive(now)
        return upload

    async def add_part(self, upload: Upload, part: UploadPart) -> None:
        """Stores a part that the upload has taken."""
        row = {
            "upload_uid": upload.uid,
            "org": upload.org,
            "offset": part.offset,
            "size": part.size,
            "sha256": part.sha256,
        }
        await (await self.uow.connection()).execute(insert(tables.upload_parts).values(row))

    async def has_part(self, upload: Upload, part: UploadPart) -> bool:
        """Whether this very part has arrived."""
        parts = tables.upload_parts.c
        query = select(parts.offset).where(
            parts.upload_uid == upload.uid,
            parts.org == upload.org,
            parts.offset == part.offset,
            parts.size == part.size,
            parts.sha256 == part.sha256,
        )
        return (await (await self.uow.connection()).execute(query)).first() is not None

    async def parts(self, upload: Upload) -> list[UploadPart]:
        """The parts in order."""
        columns = tables.upload_parts.c
        query = (
            select(columns.offset, columns.size, columns.sha256)
            .where(columns.upload_uid == upload.uid, columns.org == upload.org)
            .order_by(columns.offset)
        )
        return [UploadPart(*row) for row in await (await self.uow.connection()).execute(query)]

    async def delete_expired(self, now: datetime) -> int:
        """Deletes the uploads that have expired with their parts; returns how many."""
        expired = delete(self.table).where(self.table.c.expire_time <= now)
        return (await (await self.uow.connection()).execute(expired)).rowcount

    async def live_blobs(self) -> tuple[set[str], set[str]]:
        """Manifests of committed uploads, and blobs of the parts of all, for the garbage collector."""
        connection = await self.uow.connection()
        committed = select(self.table.c.manifest_digest).where(self.table.c.state == UploadState.COMMITTED)
        manifests = set((await connection.execute(committed)).scalars())
        return manifests, set((await connection.execute(select(tables.upload_parts.c.sha256))).scalars())
