"""How fast workers compute, as the last runs of a kind measured it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from libs.common.db.uow import UnitOfWork
from services.training.domain.estimate import Rates
from services.training.store.tables import machine_rates


class MachineRates:
    """One row for each number of threads of a worker."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def expected(self, threads: int) -> Rates | None:
        """Of the next run; None: no run with so many threads has ended yet."""
        query = select(machine_rates).where(machine_rates.c.threads == threads)
        row = (await (await self._uow.connection()).execute(query)).mappings().first()
        return None if row is None else Rates(row["operations"], row["bandwidth"], row["call_seconds"])

    async def keep(self, threads: int, rates: Rates, now: datetime) -> None:
        """Remembers what a run measured."""
        known = await self.expected(threads)
        values = {**asdict(known.followed_by(rates) if known else rates), "update_time": now}
        statement = insert(machine_rates).values(threads=threads, **values)
        merged = statement.on_conflict_do_update(index_elements=["threads"], set_=values)
        await (await self._uow.connection()).execute(merged)
