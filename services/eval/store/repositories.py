"""Rows of evaluations."""

from __future__ import annotations

from libs.common.db.repository import Repository
from services.eval.domain.evaluations import GATE_PENDING, Evaluation
from services.eval.store import tables

_MOST_PENDING = 100


class Evaluations(Repository[Evaluation]):
    table = tables.evaluations
    entity = Evaluation

    async def with_pending_gates(self) -> list[Evaluation]:
        """Evaluations whose verdict is not on the model version yet, oldest first."""
        query = self.query().where(self.table.c.gate_state == GATE_PENDING)
        return await self.fetch(query.order_by(self.table.c.uid).limit(_MOST_PENDING))
