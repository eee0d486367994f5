"""The rows of the algorithm catalogue."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, RowMapping, or_

from libs.common.db.repository import Repository
from libs.common.db.uow import UnitOfWork
from services.training.domain.algorithms import SYSTEM, Algorithm, AlgorithmVersion, Entry, Visibility
from services.training.domain.built_in import built_in
from services.training.domain.programs import Program
from services.training.store import tables


class Algorithms(Repository[Algorithm]):
    table = tables.algorithms
    entity = Algorithm

    def to_row(self, entity: Algorithm) -> dict[str, Any]:
        return {**super().to_row(entity), "draft": entity.draft.to_json()}

    def from_row(self, row: RowMapping) -> Algorithm:
        algorithm = super().from_row(row)
        algorithm.draft = Program.from_json(row["draft"])
        return algorithm

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

    def to_row(self, entity: AlgorithmVersion) -> dict[str, Any]:
        return {**super().to_row(entity), "program": entity.program and entity.program.to_json()}

    def from_row(self, row: RowMapping) -> AlgorithmVersion:
        version = super().from_row(row)
        version.program = Program.from_json(row["program"]) if row["program"] else None
        return version


async def entry_of(uow: UnitOfWork, name: str) -> tuple[Entry, Entry]:
    """A version as a run uses it, and the one whose bounds hold too: the built-in one that it is or is made from, or
    itself where the code is its own. Raises NOT_FOUND."""
    if name.startswith(f"{SYSTEM}/"):
        entry = built_in(name)
        return entry, entry
    return entries(await AlgorithmVersions(uow).get(name))


def entries(version: AlgorithmVersion) -> tuple[Entry, Entry]:
    """As `entry_of`, of an own version."""
    if version.program is not None:
        script = version.script(version.program)
        return script, script
    base = built_in(version.base_version)
    return version.entry(base), base
