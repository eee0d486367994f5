"""Takes away blobs that nobody can reach any more: checkpoints that were replaced, prepared data and checkpoints of
runs that have ended, and files of outside runs that were removed."""

from __future__ import annotations

import logging
from datetime import timedelta

from libs.common.blobs import BlobStore
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from services.training.store.encodings import Encodings
from services.training.store.given_up import forget, given_up
from services.training.store.manifests import (
    artifact_parts,
    checkpoint_manifests,
    code_manifests,
    give_back_checkpoints,
    model_manifests,
)
from services.training.store.run_artifacts import forget_broken_uploads

# A run may fill a disk with checkpoints of some minutes each if nobody takes those that were replaced.
_BEAT = timedelta(minutes=15)
# What a running task wrote may be named by no row yet; its next checkpoint names it.
_GRACE = timedelta(days=2)
# A group of workers that begins again reads the checkpoint that was the newest when it did.
_SETTLED = timedelta(minutes=10)
# Rows that no run has asked for so long are encoded again when one does.
_UNUSED = timedelta(days=14)
# A task that failed or was cancelled can be retried from its checkpoint this long.
_RETRY = timedelta(days=30)
# An upload of a file of an outside run that nobody went on with, as dataset has it.
_BROKEN_OFF = timedelta(days=1)

_log = logging.getLogger(__name__)


async def sweep_forever(database: Database, blobs: BlobStore, clock: Clock) -> None:
    """Sweeps now and then until it is cancelled."""
    while True:
        try:
            await sweep(database, blobs, clock)
        except DomainError as error:
            _log.warning("the sweep waits: %s", error.message)
        await clock.sleep(_BEAT.total_seconds())


async def sweep(database: Database, blobs: BlobStore, clock: Clock) -> int:
    """One sweep. Returns how many blobs went."""
    async with database.system() as uow:
        await give_back_checkpoints(uow, clock.now() - _RETRY)
        await Encodings(uow).forget(clock.now() - _UNUSED)
        await forget_broken_uploads(uow, clock.now() - _BROKEN_OFF)
    async with database.system(read_only=True) as uow:
        parts = await artifact_parts(uow)
        manifests = await model_manifests(uow) | await code_manifests(uow)
        manifests |= await checkpoint_manifests(uow, clock.now() - _RETRY) | await Encodings(uow).manifests()
        replaced = await given_up(uow, clock.now() - _SETTLED)
    deleted = await blobs.collect(manifests, parts, _GRACE.total_seconds(), replaced)
    async with database.system() as uow:
        await forget(uow, replaced)
    if deleted:
        _log.info("%d blobs collected", deleted)
    return deleted
