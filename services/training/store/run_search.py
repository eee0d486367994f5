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
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    FromClause,
    Select,
    Subquery,
    and_,
    any_,
    delete,
    exists,
    literal,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert

from libs.common.db.tables import uid_type
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from services.training.domain.run_filter import Comparison, Ordering, microseconds
from services.training.domain.runs import Value, parameters
from services.training.domain.trainings import TrainingRun
from services.training.store import tables

# A condition that so many runs meet is rare: they are looked at one by one, which takes some 10 ms.
_RARE = 2_000
# Where all conditions are frequent, the runs are walked in their order until a page is full: so many at first, twice as
# many the next time, and so many at most.
_STRIDE = 500
_LONGEST_WALK = 8_000
# What is frequent each by itself and rare together is left to joins by hash, 50 ms a condition for a hundred thousand
# runs. 32 MB hold the hashes of half a million.
_JOIN = text("SELECT set_config('enable_nestloop', 'off', true), set_config('work_mem', '32MB', true)")


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
    here = _parse(after) if after else None
    # What most runs meet is asked for of those that meet the rest.
    conditions = sorted(conditions, key=lambda one: one.operator == "!=")
    few, rarest = await _fewest(uow, org, conditions)
    if few is not None:
        few_in_order = _in_order(org, ordering, here).where(
            tables.run_terms.c.run_uid == any_(literal(few, ARRAY(uid_type())))
        )
        # The offset keeps the database from asking for the other conditions before it sorts: a page asks a few times.
        page = few_in_order.order_by(*_order(tables.run_terms, ordering)).offset(0).subquery()
        others = (_looked_up(page, org, one) for one in conditions if one is not rarest)
        query = select(page.c.run_uid, page.c.value).where(*others)
        return await _rows(uow, query.order_by(*_order(page, ordering)).limit(size))
    found: list[tuple[str, float]] = []
    stride = _STRIDE
    while stride <= _LONGEST_WALK:
        page = _in_order(org, ordering, here).order_by(*_order(tables.run_terms, ordering)).limit(stride).subquery()
        meets = and_(true(), *(_looked_up(page, org, one) for one in conditions)).label("meets")
        query = select(page.c.run_uid, page.c.value, meets).order_by(*_order(page, ordering))
        rows = (await (await uow.connection()).execute(query)).all()
        found += [(row.run_uid, row.value) for row in rows if row.meets]
        if len(found) >= size or len(rows) < stride:
            return found[:size]
        here, stride = (rows[-1].value, rows[-1].run_uid), stride * 2
    await (await uow.connection()).execute(_JOIN)
    rest = _in_order(org, ordering, here)
    rest = rest.where(*(_joined(tables.run_terms, org, one) for one in conditions))
    return found + await _rows(uow, rest.order_by(*_order(tables.run_terms, ordering)).limit(size - len(found)))


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


async def _fewest(
    uow: UnitOfWork, org: str, conditions: Sequence[Comparison]
) -> tuple[list[str] | None, Comparison | None]:
    """The runs that meet the rarest condition, and which it is; None: all conditions are frequent."""
    fewest: list[str] | None = None
    rarest: Comparison | None = None
    for condition in conditions:
        if condition.operator == "!=":
            continue
        table = tables.run_terms.alias()
        query = select(table.c.run_uid).where(*rows_of(table, org, condition)).limit(_RARE + 1)
        uids = list((await (await uow.connection()).execute(query)).scalars())
        if len(uids) <= _RARE and (fewest is None or len(uids) < len(fewest)):
            fewest, rarest = uids, condition
    return fewest, rarest


def _in_order(org: str, ordering: Ordering, here: tuple[float, str] | None) -> Select[str, float]:
    """All runs that have what is sorted by, from a position on."""
    table = tables.run_terms
    query = select(table.c.run_uid, table.c.value).where(table.c.term == _term(org, ordering.field))
    if here is None:
        return query
    seen = tuple_(literal(here[0], Float()), literal(here[1], uid_type()))
    own = tuple_(table.c.value, table.c.run_uid)
    return query.where(own < seen if ordering.descending else own > seen)


def _order(table: FromClause, ordering: Ordering) -> list[ColumnElement[Any]]:
    columns = (table.c.value, table.c.run_uid)
    return [column.desc() if ordering.descending else column.asc() for column in columns]


async def _rows(uow: UnitOfWork, query: Select[str, float]) -> list[tuple[str, float]]:
    return [(row.run_uid, row.value) for row in await (await uow.connection()).execute(query)]


def _looked_up(page: Subquery, org: str, condition: Comparison) -> ColumnElement[bool]:
    """Whether a run meets a condition, found by its key: a scalar query is never made a join."""
    other = tables.run_terms.alias()
    met = select(true()).where(other.c.run_uid == page.c.run_uid, *rows_of(other, org, condition)).scalar_subquery()
    return met.is_(None) if _lacking(condition) else met.is_not(None)


def _joined(table: FromClause, org: str, condition: Comparison) -> ColumnElement[bool]:
    other = tables.run_terms.alias()
    met = exists().where(other.c.run_uid == table.c.run_uid, *rows_of(other, org, condition))
    return ~met if _lacking(condition) else met


def _lacking(condition: Comparison) -> bool:
    """A run is not of a text if it has no row with it."""
    return condition.operator == "!=" and isinstance(condition.value, str)


def rows_of(table: FromClause, org: str, condition: Comparison) -> list[ColumnElement[bool]]:
    """The rows of `run_terms` that meet a condition."""
    if isinstance(condition.value, str):
        # With the value, the runs of a text are found side by side in the index, and not each in a page of its own.
        return [table.c.term == _term(org, condition.field, condition.value), table.c.value == 0.0]
    operator = "<>" if condition.operator == "!=" else condition.operator
    return [table.c.term == _term(org, condition.field), table.c.value.op(operator)(condition.value)]


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
