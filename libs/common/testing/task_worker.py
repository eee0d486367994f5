"""A jobs process for tests: `python -m libs.common.testing.task_worker DATABASE_URL RAY_ADDRESS`, to be killed."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from sqlalchemy import text

from libs.common.blobs import BlobStore
from libs.common.db.engine import create_engine
from libs.common.db.infrastructure import create_infrastructure
from libs.common.db.uow import Database, UnitOfWork
from libs.common.tasks import (
    Task,
    TaskError,
    TaskKind,
    TaskWorker,
    add_left_rooms,
    add_pause_to_tasks,
    add_quota_to_tasks,
    create_task_tables,
)
from libs.compute.client import RayDriver

# Short, so that adoption is quick; long enough for two busy cores.
LEASE_SECONDS = 3.0
SERVICE = "test"


def migrate(op: Operations) -> None:
    """The tables of the test service: one row a result that was applied, or a failure that was told."""
    create_infrastructure(op)
    create_task_tables(op)
    add_pause_to_tasks(op)
    add_quota_to_tasks(op)
    add_left_rooms(op)
    op.execute("CREATE TABLE effects (task uuid, effect text, detail text)")


async def _effect(uow: UnitOfWork, task: Task, effect: str, detail: str) -> None:
    row = {"task": task.uid, "effect": effect, "detail": detail}
    await (await uow.connection()).execute(text("INSERT INTO effects VALUES (:task, :effect, :detail)"), row)


async def _load(task: Task, runtime: Any) -> dict[str, Any]:
    return task.input


async def _apply(task: Task, result: dict[str, Any], uow: UnitOfWork) -> dict[str, Any]:
    await _effect(uow, task, "applied", str(result))
    return result


async def _paused(task: Task, uow: UnitOfWork) -> None:
    await _effect(uow, task, "paused", str(task.checkpoint))


async def _interrupted(task: Task, why: str, uow: UnitOfWork) -> None:
    if task.input.get("tell"):
        await _effect(uow, task, "interrupted", why)


async def _metrics(task: Task, events: Sequence[dict[str, Any]], uow: UnitOfWork) -> TaskError | None:
    """Where the task wants it told, each value is kept; one above its `limit` is the end."""
    if not task.input.get("tell"):
        return None
    for event in events:
        for name, value in event["values"].items():
            await _effect(uow, task, "metric", f"{event['step']} {name} {value}")
            if value > task.input.get("limit", math.inf):
                return TaskError("TRAINING_DIVERGED", f"{name} is {value}")
    return None


async def _failed(task: Task, error: TaskError, uow: UnitOfWork) -> None:
    await _effect(uow, task, "failed", error.reason)


async def _started(task: Task, uow: UnitOfWork) -> None:
    await _effect(uow, task, "started", str(task.attempt))


def kinds() -> list[TaskKind]:
    """A kind for each engine of `libs.common.testing.engines`."""
    return [
        TaskKind(
            f"test.{name}",
            load=_load,
            entrypoint=f"libs.common.testing.engines:{name}",
            apply=_apply,
            resources={"num_cpus": 0.1},
            on_start=_started,
            on_failure=_failed,
            metrics=_metrics,
            on_pause=_paused,
            on_interruption=_interrupted,
        )
        for name in ("steps", "refuse", "crash", "interrupted")
    ]


def make_worker(database: Database, driver: RayDriver, blobs: BlobStore | None = None) -> TaskWorker:
    return TaskWorker(database, kinds(), driver, blobs=blobs, lease_seconds=LEASE_SECONDS)


async def main() -> None:
    url, address = sys.argv[1:3]
    database = Database(create_engine(url), SERVICE)
    await make_worker(database, RayDriver(address, service=SERVICE)).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
