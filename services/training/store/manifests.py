"""Which manifests in the blob store are still named by a row."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import and_, or_, select

from libs.common.db.uow import UnitOfWork
from libs.common.tasks import left_rooms
from libs.common.tasks.tables import tasks
from services.training.store import tables


async def model_manifests(uow: UnitOfWork) -> set[str]:
    """Of all model versions, of every organization, deleted ones too: they can be undeleted."""
    # Across organizations on purpose: the sweep belongs to the service, not to a tenant.
    rows = await (await uow.connection()).execute(select(tables.model_versions.c.manifest_digest))
    return {row.manifest_digest for row in rows}


async def code_manifests(uow: UnitOfWork) -> set[str]:
    """Of the drafts and versions of all algorithms, of every organization, deleted ones too."""
    connection = await uow.connection()
    found: set[str] = set()
    for column in (tables.algorithms.c.draft, tables.algorithm_versions.c.program):
        digests = select(column["digest"].astext.label("digest")).where(column["digest"].astext != "")
        found.update(row.digest for row in await connection.execute(digests))
    return found


async def artifact_parts(uow: UnitOfWork) -> set[str]:
    """Blobs of the files of outside runs, also of uploads that are not complete yet."""
    rows = await (await uow.connection()).execute(select(tables.run_artifacts.c.parts))
    return {part["sha256"] for row in rows for part in row.parts}


async def give_back_checkpoints(uow: UnitOfWork, before: datetime) -> None:
    """Tasks that failed or were cancelled before a time, of every organization, keep no storage any more."""
    ended = tasks.c.state.in_(("FAILED", "CANCELLED"))
    await left_rooms.give_back(uow, select(tasks.c.name).where(ended, tasks.c.update_time < before))


async def checkpoint_manifests(uow: UnitOfWork, since: datetime) -> set[str]:
    """Prepared data and newest checkpoint of tasks that may go on: paused, or changed since a time, not succeeded."""
    unfinished = and_(tasks.c.state != "SUCCEEDED", tasks.c.update_time >= since)
    query = select(tasks.c.checkpoint).where(
        or_(tasks.c.state == "PAUSED", unfinished), tasks.c.checkpoint.is_not(None)
    )
    found: set[str] = set()
    for row in await (await uow.connection()).execute(query):
        if "plan" in row.checkpoint:
            found.add(row.checkpoint["plan"]["prepared"])
        if "manifest_digest" in row.checkpoint:
            found.add(row.checkpoint["manifest_digest"])
        # Of a search: the data of its trials and the best model so far.
        found.update(row.checkpoint.get("manifests", ()))
    return found
