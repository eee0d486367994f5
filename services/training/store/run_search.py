"""Runs by what they were given and what came out, whatever it is called.

Each number of a run, and each text that lists filter by, is a row of `run_terms`: a 64-bit hash of organization and
name (for a text also of the text), the value, the run. An index over term and value gives the runs of any condition,
and any order, without a look at the runs. The table has no text and, as row-level security would keep the index from
being used, no organization: terms are salted with it, and whatever is found is read from the runs themselves.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Float, FromClause, delete, exists, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert

from libs.common.db.tables import uid_type
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from services.training.domain.run_filter import Comparison, Ordering, microseconds
from services.training.domain.runs import Value, parameters
from services.training.domain.trainings import TrainingRun
from services.training.store import tables

# How many runs meet a condition is not known beforehand: nested loops, which are best for few, take seconds for many;
# joins by hash take 50 ms for a hundred thousand, always. 32 MB hold the hashes of half a million runs.
_PLAN = text("SELECT set_config('enable_nestloop', 'off', true), set_config('work_mem', '32MB', true)")


async def remember(uow: UnitOfWork, run: TrainingRun) -> None:
    """Stores what a run is found by, as far as it has changed."""
    table, connection = tables.run_terms, await uow.connection()
    rows = await connection.execute(select(table.c.term, table.c.value).where(table.c.run_uid == run.uid))
    old, new = {row.term: row.value for row in rows}, terms_of(run)
    gone = old.keys() - new.keys()
    if gone:
        await connection.execute(delete(table).where(table.c.run_uid == run.uid, table.c.term.in_(gone)))
    changed = [
        {"run_uid": run.uid, "term": term, "value": value} for term, value in new.items() if old.get(term) != value
    ]
    if changed:
        change = upsert(table)
        change = change.on_conflict_do_update(index_elements=["run_uid", "term"], set_={"value": change.excluded.value})
        await connection.execute(change, changed)


async def search(
    uow: UnitOfWork, org: str, conditions: Sequence[Comparison], ordering: Ordering, size: int, after: str
) -> list[tuple[str, float]]:
    """Uid and sorting value of at most `size` runs.

    Args:
        after: position that `position` gave; empty: from the beginning.

    Raises:
        DomainError: PAGE_TOKEN_INVALID.
    """
    table = tables.run_terms.alias()
    query = select(table.c.run_uid, table.c.value).where(table.c.term == _term(org, ordering.field))
    for condition in conditions:
        query = query.where(_meets(table, org, condition))
    here = tuple_(table.c.value, table.c.run_uid)
    if after:
        value, uid = _parse(after)
        seen = tuple_(literal(value, Float()), literal(uid, uid_type()))
        query = query.where(here < seen if ordering.descending else here > seen)
    order = [column.desc() if ordering.descending else column for column in (table.c.value, table.c.run_uid)]
    connection = await uow.connection()
    await connection.execute(_PLAN)
    rows = await connection.execute(query.order_by(*order).limit(size))
    return [(row.run_uid, row.value) for row in rows]


def position(found: tuple[str, float]) -> str:
    """Where the next page goes on."""
    return f"{found[1]!r} {found[0]}"


def terms_of(run: TrainingRun) -> dict[int, float]:
    """All that a run is found by."""
    org = run.org
    numbers = {"create_time": microseconds(run.create_time), **{f"results.{k}": v for k, v in run.results.items()}}
    texts: dict[str, Value] = {"state": run.state, "training": run.parent.rsplit("/", 1)[1], "creator": run.creator}
    texts |= {f"labels.{name}": value for name, value in run.labels.items()}
    for name, value in parameters(run).items():
        if isinstance(value, float):
            numbers[name] = value
        else:
            texts[name] = value
    found = {_term(org, name): value for name, value in numbers.items() if math.isfinite(value)}
    return found | {_term(org, name, str(value)): 0.0 for name, value in texts.items()}


def _meets(table: FromClause, org: str, condition: Comparison) -> ColumnElement[bool]:
    other = tables.run_terms.alias()
    text_value = condition.value if isinstance(condition.value, str) else None
    found = exists().where(other.c.run_uid == table.c.run_uid, other.c.term == _term(org, condition.field, text_value))
    if text_value is not None:
        return found if condition.operator == "=" else ~found
    operator = "<>" if condition.operator == "!=" else condition.operator
    return found.where(other.c.value.op(operator)(condition.value))


def _term(org: str, name: str, text_value: str | None = None) -> int:
    parts = (org, name) if text_value is None else (org, name, text_value)
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _parse(after: str) -> tuple[float, str]:
    value, _, uid = after.partition(" ")
    try:
        return float(value), str(uuid.UUID(uid))
    except ValueError:
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token") from None
