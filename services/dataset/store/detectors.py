"""The rows of detectors."""

from __future__ import annotations

from sqlalchemy import select

from libs.common.db.repository import Repository
from services.dataset.domain.detectors import Detector
from services.dataset.store import tables


class Detectors(Repository[Detector]):
    table = tables.detectors
    entity = Detector

    async def manifests(self) -> set[str]:
        """The manifests of all detectors, for the garbage collector."""
        connection = await self.uow.connection()
        return set((await connection.execute(select(self.table.c.manifest_digest))).scalars())
