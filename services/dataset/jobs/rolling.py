"""Makes versions of what waits in streams."""

from __future__ import annotations

import logging
from datetime import datetime

from argosy.common.v1 import task_pb2

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError
from libs.common.ids import resource_id, uuid7
from libs.common.tasks import Tasks
from libs.common.tasks import store as task_store
from services.dataset.clients.upload_parts import whole_file
from services.dataset.domain.streams import Stream
from services.dataset.domain.tasks import IMPORT
from services.dataset.domain.uploads import COMMITTED_TIME, Upload, UploadState
from services.dataset.store.repositories import Datasets, Uploads
from services.dataset.store.streams import Streams

_BEAT = 1.0

_log = logging.getLogger(__name__)


class Rolling:
    """Turns what waits in a stream into an upload with its import, in one transaction: nothing is lost or doubled,
    whenever the process ends.

    Args:
        database: The service's.
        blobs: The service's.
        tasks: The service's.
        clock: Says what is due.
    """

    def __init__(self, database: Database, blobs: BlobStore, tasks: Tasks, clock: Clock) -> None:
        self._database = database
        self._blobs = blobs
        self._tasks = tasks
        self._clock = clock

    async def run(self) -> None:
        """Rolls what is due until it is cancelled."""
        while True:
            try:
                while await self.roll_next():
                    pass
            except DomainError as error:
                _log.warning("streams wait: %s", error.message)
            await self._clock.sleep(_BEAT)

    async def roll_next(self) -> bool:
        """One stream that is due; whether there was one."""
        now = self._clock.now()
        async with self._database.system() as uow:
            stream = await Streams(uow).next_due(now)
            if stream is None:
                return False
            try:
                await self.roll(stream, uow, now)
            except DomainError as error:
                if error.reason not in ("STATE_CONFLICT", "NOT_FOUND"):
                    raise
                stream.postpone(now)
                await Streams(uow).save(stream)
        return True

    async def roll(self, stream: Stream, uow: UnitOfWork, now: datetime) -> task_pb2.Task:
        """Queues the import of what waits.

        Args:
            stream: Locked by the unit of work.

        Raises:
            DomainError: STATE_CONFLICT if nothing waits, while the dataset is locked, or while the version before is
                being made: versions come in the order of their rows. NOT_FOUND if the dataset is gone.
        """
        stream.require_pending(True)
        dataset = await Datasets(uow).get(stream.parent)
        dataset.require_unlocked()
        if stream.task and (await task_store.get(uow, stream.task)).state in ("QUEUED", "RUNNING"):
            message = f"{stream.name}: {stream.task} still makes the version before."
            raise DomainError("STATE_CONFLICT", message, name=stream.name, state="rolling", wanted="pending")
        batches = await Streams(uow).take_batches(stream)
        digest, manifest = await whole_file(self._blobs, batches)
        upload = Upload(
            uid=uuid7(),
            name=f"orgs/{stream.org}/uploads/{resource_id('up')}",
            create_time=now,
            update_time=now,
            creator=stream.creator,
            state=UploadState.COMMITTED,
            expire_time=now + COMMITTED_TIME,
            file_name=f"{stream.id}-{stream.roll_count + 1}.jsonl",
            size=stream.pending_bytes,
            offset=stream.pending_bytes,
            digest=digest,
            manifest_digest=manifest,
        )
        await Uploads(uow).insert(upload)
        work = {"dataset": dataset.name, "upload": upload.name, "format": "jsonl", "media_type": ""}
        work["base"] = dataset.latest_version
        task = await self._tasks.create(uow, stream.org, IMPORT, dataset.name, work, stream.creator)
        stream.roll(task.name, now)
        await Streams(uow).save(stream)
        return task
