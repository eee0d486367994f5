"""The rows of the algorithm catalogue."""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_

from libs.common.db.repository import Repository
from libs.common.db.uow import UnitOfWork
from services.training.domain.algorithms import SYSTEM, Algorithm, AlgorithmVersion, Entry, Visibility
from services.training.domain.built_in import built_in
from services.training.store import tables


class Algorithms(Repository[Algorithm]):
    table = tables.algorithms
    entity = Algorithm

    async def visible(self, name: str, subject: str, role: int, *, for_update: bool = False) -> Algorithm:
        """The algorithm, if the principal may see it. Raises NOT_FOUND otherwise."""
        algorithm = await self.get(name, for_update=for_update)
        algorithm.require_visible_to(subject, role)
        return algorithm

    def published_or_of(self, subject: str) -> ColumnElement[bool]:
        """What somebody sees who is no administrator."""
        return or_(self.table.c.visibility == Visibility.ORGANIZATION, self.table.c.creator == subject)


class AlgorithmVersions(Repository[AlgorithmVersion]):
    table = tables.algorithm_versions
    entity = AlgorithmVersion


async def entry_of(uow: UnitOfWork, name: str) -> tuple[Entry, Entry]:
    """A version as a run uses it, and the built-in one that it is or is made from. Raises NOT_FOUND."""
    if name.startswith(f"{SYSTEM}/"):
        entry = built_in(name)
        return entry, entry
    version = await AlgorithmVersions(uow).get(name)
    base = built_in(version.base_version)
    return version.entry(base), base
