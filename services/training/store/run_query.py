"""Runs of some trainings by conditions on anything they have.

Unlike `run_search`, which finds runs among all of an organization by an index, this reads the runs of the trainings
that are named: metrics of runs change with every report, and an index over them would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    Text,
    and_,
    any_,
    case,
    cast,
    exists,
    extract,
    func,
    literal,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from libs.common.domain import DomainError
from services.training.domain.run_filter import Comparison
from services.training.domain.run_query import Condition, Field, Order
from services.training.store import tables
from services.training.store.repositories import TrainingRuns
from services.training.store.run_search import rows_of

_RUNS, _RECORDS, _METRICS = tables.training_runs.c, tables.run_records.c, tables.run_metrics.c
# Of a run of ours these are parameters too; what its spec says is found by its terms.
_COLUMNS = ("dataset_version", "validation_version", "model_project", "base_model_version", "algorithm_version")
_SPEC = "spec."


class Life(StrEnum):
    """Which runs."""

    ACTIVE = "ACTIVE"
    DELETED = "DELETED"
    ALL = "ALL"


async def query_runs(
    runs: TrainingRuns,
    org: str,
    trainings: Sequence[str],
    conditions: Sequence[Condition],
    orders: Sequence[Order],
    life: Life,
    size: int,
    skipped: int,
) -> list[str]:
    """The uids of at most `size` runs behind the first `skipped` ones.

    Args:
        trainings: names.
    """
    alive = {Life.ACTIVE: _RUNS.delete_time.is_(None), Life.DELETED: _RUNS.delete_time.is_not(None), Life.ALL: true()}
    query = runs.query().with_only_columns(_RUNS.uid)
    query = query.select_from(tables.training_runs.outerjoin(tables.run_records, _RECORDS.run_uid == _RUNS.uid))
    query = query.where(_RUNS.parent == any_(literal(list(trainings), ARRAY(Text))), alive[life])
    query = query.where(*(_meets(org, condition) for condition in conditions))
    keys = [_sorting(org, order) for order in orders]
    query = query.order_by(*keys, _RUNS.create_time.desc(), _RUNS.uid.desc())
    return list((await (await runs.uow.connection()).execute(query.limit(size).offset(skipped))).scalars())


def skipped_of(position: str) -> int:
    """How many runs a page leaves out. Raises PAGE_TOKEN_INVALID."""
    if position and not (position.isascii() and position.isdecimal() and len(position) < 16):
        message = "page_token: is not one that this list gave"
        raise DomainError("PAGE_TOKEN_INVALID", message, field="page_token")
    return int(position or "0")


def _meets(org: str, condition: Condition) -> ColumnElement[bool]:
    if condition.field is Field.PARAMETER and condition.key.startswith(_SPEC):
        return _in_spec(org, condition)
    value = _value(org, condition.field, condition.key)
    if condition.numeric:
        operator = "<>" if condition.operator == "!=" else condition.operator
        return value.op(operator, is_comparison=True)(literal(condition.number, Float))
    texts = list(condition.texts)
    match condition.operator:
        case "=":
            return value == texts[0]
        case "!=":
            return value != texts[0]
        case "LIKE":
            return value.like(_pattern(texts[0]))
        case "ILIKE":
            return value.ilike(_pattern(texts[0]))
        case "IN":
            return value == any_(literal(texts, ARRAY(Text)))
        case _:
            return and_(value.is_not(None), ~(value == any_(literal(texts, ARRAY(Text)))))


def _pattern(text: str) -> str:
    """A backslash stands for itself."""
    return text.replace("\\", "\\\\")


def _in_spec(org: str, condition: Condition) -> ColumnElement[bool]:
    """By the terms of a run of ours: equal texts and equal numbers."""
    if condition.operator not in ("=", "!="):
        message = f"conditions: {condition.key} is a parameter of Argosy's own runs, which has = and != here"
        raise DomainError("INVALID_FIELD", message, field="conditions")
    text, found = condition.texts[0], list[ColumnElement[bool]]()
    values: list[str | float] = [text]
    with suppress(ValueError):
        values.append(float(text))
    for value in values:
        table = tables.run_terms.alias()
        met = rows_of(table, org, Comparison(condition.key, "=", value))
        found.append(exists().where(table.c.run_uid == _RUNS.uid, *met))
    any_of = found[0] if len(found) == 1 else found[0] | found[1]
    return any_of if condition.operator == "=" else ~any_of


def _value(org: str, field: Field, key: str) -> ColumnElement[Any]:
    match field:
        case Field.PARAMETER:
            return _RUNS[key] if key in _COLUMNS else _RUNS.parameters[key].astext
        case Field.TAG:
            return func.coalesce(_RECORDS.tags[key].astext, _RUNS.labels[key].astext)
        case Field.METRIC:
            here = (_METRICS.run_uid == _RUNS.uid, _METRICS.key == key, _METRICS.org == org)
            newest = select(_METRICS.last_value).where(*here)
            return func.coalesce(newest.scalar_subquery(), cast(_RUNS.results[key].astext, Float))
        case _:
            return _attribute(key)


def _attribute(key: str) -> ColumnElement[Any]:
    started = func.coalesce(_RECORDS.start_time, _RUNS.create_time)
    running = _RUNS.state.in_(("QUEUED", "RUNNING", "PAUSED"))
    ended = case((_RUNS.outside, _RECORDS.end_time), (running, null()), else_=_RUNS.update_time)
    by_name: dict[str, ColumnElement[Any]] = {
        "name": _RUNS.name,
        "state": _RUNS.state,
        "creator": _RUNS.creator,
        "display_name": func.coalesce(_RECORDS.display_name, _RUNS.id),
        "start_time": func.floor(extract("epoch", started) * 1000),
        "end_time": func.floor(extract("epoch", ended) * 1000),
    }
    return by_name[key]


def _sorting(org: str, order: Order) -> ColumnElement[Any]:
    value = (
        null()
        if order.field is Field.PARAMETER and order.key.startswith(_SPEC)
        else _value(org, order.field, order.key)
    )
    if order.field is Field.METRIC:
        # NaN is above everything for the database; here it is no value.
        value = case((value == literal(float("nan"), Float), null()), else_=value)
    return (value.desc() if order.descending else value.asc()).nulls_last()
