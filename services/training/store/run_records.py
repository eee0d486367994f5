"""What outside runs have beside runs of ours, and the newest points of any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import any_, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from libs.common.db.tables import uid_type
from libs.common.db.uow import ANY_ORG, UnitOfWork
from services.training.domain.outside_runs import RunRecord
from services.training.domain.run_filter import microseconds
from services.training.store import tables


@dataclass(frozen=True)
class Newest:
    """The newest point of a metric; `time` in microseconds since 1970."""

    key: str
    step: int
    time: int
    value: float


class RunRecords:
    """Records of the runs of the unit of work's organization."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def of(self, uids: Sequence[str]) -> dict[str, RunRecord]:
        """The records of outside runs by uid; a run of ours has none."""
        table = tables.run_records
        query = select(table).where(table.c.run_uid == any_(literal(list(uids), ARRAY(uid_type()))))
        found: dict[str, RunRecord] = {}
        for row in (await (await self._uow.connection()).execute(query.where(*self._tenant(table)))).mappings():
            found[row["run_uid"]] = RunRecord(
                run_uid=row["run_uid"],
                org=row["org"],
                display_name=row["display_name"],
                start_time=row["start_time"].astimezone(UTC),
                tags=dict(row["tags"]),
                end_time=row["end_time"] and row["end_time"].astimezone(UTC),
            )
        return found

    async def save(self, record: RunRecord) -> None:
        """Stores a record. The run's row is locked by then."""
        row = asdict(record)
        change = upsert(tables.run_records).values(row)
        change = change.on_conflict_do_update(index_elements=["run_uid"], set_=row)
        await (await self._uow.connection()).execute(change)

    async def newest(self, uids: Sequence[str]) -> dict[str, list[Newest]]:
        """The newest point of every metric of runs, by uid of the run and then by key."""
        table = tables.run_metrics
        columns = (table.c.run_uid, table.c.key, table.c.last_step, table.c.last_time, table.c.last_value)
        query = select(*columns).where(table.c.run_uid == any_(literal(list(uids), ARRAY(uid_type()))))
        query = query.where(*self._tenant(table)).order_by(table.c.run_uid, table.c.key)
        found: dict[str, list[Newest]] = {}
        for row in await (await self._uow.connection()).execute(query):
            point = Newest(row.key, row.last_step, int(microseconds(row.last_time.astimezone(UTC))), row.last_value)
            found.setdefault(row.run_uid, []).append(point)
        return found

    def _tenant(self, table: Any) -> tuple[Any, ...]:
        # The first wall; row-level security is the second.
        return () if self._uow.org == ANY_ORG else (table.c.org == self._uow.org,)
