"""Which token arrays and tokenizers the runs of an organization have made, for its next runs on the same versions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert

from libs.common.db.uow import UnitOfWork
from services.training.store import tables

# A run gets a grant for each: as many as a search over templates and tokenizers makes, and few enough for a message.
_MOST_OFFERED = 64


class Encodings:
    """The rows of encodings.

    Args:
        uow: of the service itself; each method names the organization.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def offered(self, org: str, dataset_digests: Collection[str]) -> dict[str, str]:
        """Digests of manifests by key: what runs of the organization have made of these versions, the last used ones.

        Args:
            dataset_digests: of versions that the run has a grant for.
        """
        table = tables.encodings
        query = (
            select(table.c.key, table.c.manifest_digest)
            .where(table.c.org == org, table.c.dataset_digest.in_(dataset_digests))
            .order_by(table.c.use_time.desc(), table.c.key)
            .limit(_MOST_OFFERED)
        )
        return {row.key: row.manifest_digest for row in await (await self._uow.connection()).execute(query)}

    async def remember(self, org: str, told: Iterable[Mapping[str, str]], now: datetime) -> None:
        """Keeps what a run has made and notes what it used again.

        Args:
            told: see `engines.encodings.Encodings.told`.
        """
        table, connection = tables.encodings, await self._uow.connection()
        for entry in told:
            if "manifest_digest" in entry:
                row = {**entry, "org": org, "create_time": now, "use_time": now}
                # Made again where two runs began at the same time, or where it was not among those that were offered.
                newest = {"manifest_digest": entry["manifest_digest"], "use_time": now}
                change = insert(table).values(row)
                await connection.execute(change.on_conflict_do_update(index_elements=["org", "key"], set_=newest))
            else:
                mine = (table.c.org == org, table.c.key == entry["key"])
                await connection.execute(update(table).where(*mine).values(use_time=now))

    async def forget(self, before: datetime) -> None:
        """Forgets what no run has used since a time, of every organization."""
        # Across organizations on purpose: the sweep belongs to the service, not to a tenant.
        table = tables.encodings
        await (await self._uow.connection()).execute(delete(table).where(table.c.use_time < before))

    async def manifests(self) -> set[str]:
        """What is remembered, of every organization."""
        rows = await (await self._uow.connection()).execute(select(tables.encodings.c.manifest_digest))
        return {row.manifest_digest for row in rows}
