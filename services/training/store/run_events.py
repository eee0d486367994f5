"""What happened to runs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC

from sqlalchemy import insert, select

from libs.common.db.uow import ANY_ORG, UnitOfWork
from libs.common.domain import DomainError
from services.training.domain.runs import EventKind, RunEvent
from services.training.domain.trainings import TrainingRun
from services.training.store import tables


class RunEvents:
    """Events of the runs of the unit of work's organization."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    async def add(self, run: TrainingRun, event: RunEvent) -> None:
        """Stores an event."""
        row = {**asdict(event), "org": run.org, "run_uid": run.uid}
        await (await self._uow.connection()).execute(insert(tables.run_events).values(row))

    async def list(self, run: TrainingRun, page_size: int, after: str) -> tuple[list[RunEvent], str]:
        """One page, oldest first, and the position for the next one, empty at the end."""
        columns = tables.run_events.c
        query = select(tables.run_events).where(columns.run_uid == run.uid, columns.id > _position(after))
        if self._uow.org != ANY_ORG:
            query = query.where(columns.org == self._uow.org)
        query = query.order_by(columns.id).limit(page_size + 1)
        rows = list((await (await self._uow.connection()).execute(query)).mappings())
        found = [
            RunEvent(EventKind(row["kind"]), row["time"].astimezone(UTC), row["message"], dict(row["details"]))
            for row in rows[:page_size]
        ]
        return found, str(rows[page_size - 1]["id"]) if len(rows) > page_size else ""


def _position(after: str) -> int:
    try:
        return int(after or "0")
    except ValueError:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token") from None
