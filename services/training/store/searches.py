"""The rows of searches and their trials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import RowMapping, select, update
from sqlalchemy.dialects.postgresql import insert

from libs.common.db.repository import Repository
from libs.common.db.uow import ANY_ORG
from libs.common.domain import DomainError
from services.training.domain.searches import HyperparameterSearch, SearchPlan, Trial, TrialState
from services.training.domain.spec import TrainingSpec
from services.training.store import tables


class Searches(Repository[HyperparameterSearch]):
    table = tables.searches
    entity = HyperparameterSearch

    def to_row(self, entity: HyperparameterSearch) -> dict[str, Any]:
        return {**super().to_row(entity), "plan": entity.plan.to_json(), "spec": entity.spec.to_json()}

    def from_row(self, row: RowMapping) -> HyperparameterSearch:
        search = super().from_row(row)
        search.plan = SearchPlan.from_json(row["plan"])
        search.spec = TrainingSpec.from_json(row["spec"])
        return search

    async def keep_trials(self, search: HyperparameterSearch, trials: Iterable[Trial]) -> None:
        """Stores trials that are new or have changed their state; a trial that has ended stays as it is."""
        table = tables.search_trials
        connection = await self.uow.connection()
        query = select(table.c.number, table.c.state).where(table.c.search == search.name, table.c.org == search.org)
        known = {row.number: row.state for row in await connection.execute(query)}
        new = [trial for trial in trials if known.get(trial.number) in (None, TrialState.RUNNING, TrialState.STOPPED)]
        for trial in new:
            row = {**trial.to_json(), "search": search.name, "org": search.org}
            key = [table.c.search, table.c.number]
            await connection.execute(insert(table).values(row).on_conflict_do_update(index_elements=key, set_=row))

    async def stop_trials(self, search: HyperparameterSearch) -> None:
        """The trials that ran when the search ended."""
        table = tables.search_trials
        mine = (table.c.search == search.name, table.c.org == search.org, table.c.state == TrialState.RUNNING)
        change = update(table).where(*mine).values(state=TrialState.STOPPED, message="the search ended")
        await (await self.uow.connection()).execute(change)

    async def trials(
        self, search: HyperparameterSearch, page_size: int | None = None, after: str = ""
    ) -> tuple[list[Trial], str]:
        """Trials in the order of their numbers.

        Args:
            page_size: at most so many; None: all.
            after: position that the page before gave.

        Returns:
            The trials, and the position for the next page, empty at the end.
        """
        table = tables.search_trials
        query = select(table).where(table.c.search == search.name, table.c.number > _position(after))
        if self.uow.org != ANY_ORG:
            query = query.where(table.c.org == self.uow.org)
        query = query.order_by(table.c.number)
        if page_size is not None:
            query = query.limit(page_size + 1)
        rows = list((await (await self.uow.connection()).execute(query)).mappings())
        shown = rows if page_size is None else rows[:page_size]
        return [_trial(row) for row in shown], str(shown[-1]["number"]) if len(rows) > len(shown) else ""


def _trial(row: RowMapping) -> Trial:
    return Trial.from_json({name: row[name] for name in Trial.__dataclass_fields__})


def _position(after: str) -> int:
    try:
        return int(after or "-1")
    except ValueError:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token") from None
