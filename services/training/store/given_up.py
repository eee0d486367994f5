"""Manifests that a task has written and needs no more: checkpoints that a newer one or the model has replaced, and what
trials of a search have made beside its best model."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from libs.common.blobs import GivenUp
from libs.common.db.uow import UnitOfWork
from libs.common.tasks import Task
from services.training.store import tables

_TABLE = tables.given_up


async def give_up(uow: UnitOfWork, task: Task, digests: Collection[str], now: datetime) -> None:
    """Notes manifests of the task, in the transaction that replaces them."""
    rows = [{"task_uid": task.uid, "manifest_digest": each, "org": task.org, "create_time": now} for each in digests]
    if rows:
        await (await uow.connection()).execute(insert(_TABLE).values(rows).on_conflict_do_nothing())


async def given_up(uow: UnitOfWork, before: datetime) -> list[GivenUp]:
    """Those that were replaced before a time, of every organization."""
    # Across organizations on purpose: the sweep belongs to the service, not to a tenant.
    rows = await (await uow.connection()).execute(select(_TABLE).where(_TABLE.c.create_time < before))
    return [GivenUp(row.manifest_digest, row.task_uid, row.create_time) for row in rows]


async def forget(uow: UnitOfWork, gone: Collection[GivenUp]) -> None:
    """Forgets those whose files are gone."""
    keys = [(each.prefix, each.manifest) for each in gone]
    mine = tuple_(_TABLE.c.task_uid, _TABLE.c.manifest_digest).in_(keys)
    await (await uow.connection()).execute(delete(_TABLE).where(mine))
