"""Takes away what nobody can reach any more: expired uploads and exports, and blobs that no row names."""

from __future__ import annotations

import logging
from datetime import timedelta

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from services.dataset.store.detectors import Detectors
from services.dataset.store.repositories import DatasetVersions, Exports, Uploads
from services.dataset.store.streams import Streams

# An upload that expired is NOT_FOUND at once; only its bytes wait for this.
_BEAT = timedelta(hours=1)
# Longer than the grant of any task: what a running task wrote is named by no row yet.
_GRACE = timedelta(days=2)

_log = logging.getLogger(__name__)


async def sweep_forever(database: Database, blobs: BlobStore, clock: Clock) -> None:
    """Sweeps now and then until it is cancelled."""
    while True:
        try:
            await sweep(database, blobs, clock)
        except DomainError as error:
            _log.warning("the sweep waits: %s", error.message)
        await clock.sleep(_BEAT.total_seconds())


async def sweep(database: Database, blobs: BlobStore, clock: Clock) -> tuple[int, int]:
    """One sweep. Returns the numbers of uploads and of blobs that went."""
    async with database.system() as uow:
        uploads = await Uploads(uow).delete_expired(clock.now())
        exports = await Exports(uow).delete_expired(clock.now())
    async with database.system(read_only=True) as uow:
        manifests, parts = await Uploads(uow).live_blobs()
        parts |= await Streams(uow).blobs()
        manifests |= await DatasetVersions(uow).manifests()
        manifests |= await Exports(uow).manifests()
        manifests |= await Detectors(uow).manifests()
    deleted = await blobs.collect(manifests, parts, _GRACE.total_seconds())
    if uploads or exports or deleted:
        _log.info("%d uploads and %d exports expired, %d blobs collected", uploads, exports, deleted)
    return uploads, deleted
