"""A process that reports metrics until it is killed: `python -m tests.integration.training.metric_writer URL RUN_UID`.

Each batch is one unit of work with a request id, as the binder makes it; its number is printed once it is committed.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from libs.common.db.engine import create_engine
from libs.common.db.idempotency import RequestKey
from libs.common.db.uow import Database
from services.training.store.metric_columns import Points
from services.training.store.metrics import RunMetrics

STEPS = 50


def batch(number: int) -> dict[str, Points]:
    """Fifty steps of two metrics, behind those of the batch before."""
    steps = np.arange(number * STEPS, (number + 1) * STEPS, dtype=np.int64)
    return {key: Points(steps, steps * 1000, steps * scale) for key, scale in (("a", 1.0), ("b", 0.5))}


async def write(database: Database, run_uid: str, number: int) -> bool:
    """Whether the batch was added; False where it had been before."""
    method, request, digest = "/bench", f"batch-{number}", bytes([number % 256])
    if await database.recall("acme", method, request, digest) is not None:
        return False
    async with database.unit_of_work("acme", "users/alice", request=RequestKey(method, request, digest)) as uow:
        await RunMetrics(uow).add(run_uid, "acme", batch(number))
        await uow.remember(method, request, digest, b"done")
    return True


async def main() -> None:
    database = Database(create_engine(sys.argv[1]), "training")
    for number in range(10_000):
        await write(database, sys.argv[2], number)
        print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
