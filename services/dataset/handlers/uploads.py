"""Uploads."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING

from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.db.mapping import timestamp, to_proto
from libs.common.errors import ArgosyError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from services.dataset.clients.upload_parts import whole_file
from services.dataset.domain.uploads import OPEN_TIME, Upload, UploadPart, UploadState
from services.dataset.store.repositories import Uploads

if TYPE_CHECKING:
    from services.dataset.app import App

_GRANT_SECONDS = 3600


def message(upload: Upload) -> dataset_pb2.Upload:
    """The upload as callers see it."""
    return to_proto(
        upload,
        dataset_pb2.Upload(
            expire_time=timestamp(upload.expire_time),
            file_name=upload.file_name,
            size=upload.size,
            offset=upload.offset,
            digest=upload.digest,
        ),
    )


async def create_upload(request: pb.CreateUploadRequest, call: Call[App]) -> dataset_pb2.Upload:
    now = call.clock.now()
    upload = Upload(
        uid=uuid7(),
        name=f"{request.parent}/uploads/{request.upload_id or resource_id('up')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        state=UploadState.OPEN,
        expire_time=now + OPEN_TIME,
        file_name=request.file_name,
        size=request.size,
    )
    await Uploads(call.uow).insert(upload)
    return message(upload)


async def get_upload(request: pb.GetUploadRequest, call: Call[App]) -> dataset_pb2.Upload:
    return message(await Uploads(call.uow).alive(request.name, call.clock.now()))


async def append_upload(request: pb.AppendUploadRequest, call: Call[App]) -> dataset_pb2.Upload:
    digest = await asyncio.to_thread(lambda: hashlib.sha256(request.data).hexdigest())
    if digest != request.sha256:
        raise _digest_mismatch("data", request.sha256, digest)
    part = UploadPart(request.offset, len(request.data), digest)
    # Durable before the row says so, and before a connection is taken. A part that is refused is garbage, and is
    # collected.
    await call.deps.blobs.put(request.data)
    repository, now = Uploads(call.uow), call.clock.now()
    upload = await repository.alive(request.name, now, for_update=True)
    if part.offset < upload.offset and await repository.has_part(upload, part):
        return message(upload)
    upload.append(part)
    upload.update_time = now
    await repository.add_part(upload, part)
    await repository.save(upload)
    return message(upload)


async def commit_upload(request: pb.CommitUploadRequest, call: Call[App]) -> dataset_pb2.Upload:
    now = call.clock.now()
    # A transaction of its own: reading a large file takes longer than one may stay open.
    async with call.deps.database.unit_of_work(call.org, call.principal.subject, read_only=True) as uow:
        seen = await Uploads(uow).alive(request.name, now)
        parts = await Uploads(uow).parts(seen)
    if seen.state == UploadState.COMMITTED:
        if request.sha256 not in ("", seen.digest):
            raise _digest_mismatch("sha256", request.sha256, seen.digest)
        return message(seen)
    seen.require_complete()
    digest, manifest = await whole_file(call.deps.blobs, parts)
    if request.sha256 not in ("", digest):
        raise _digest_mismatch("sha256", request.sha256, digest)
    repository = Uploads(call.uow)
    upload = await repository.alive(request.name, now, for_update=True)
    if upload.version != seen.version:
        raise ArgosyError("CONFLICT", f"{upload.name} was changed at the same time.", metadata={"name": upload.name})
    upload.commit(digest, manifest, now)
    await repository.save(upload)
    return message(upload)


async def grant_upload_read(request: pb.GrantUploadReadRequest, call: Call[App]) -> pb.GrantUploadReadResponse:
    now = call.clock.now()
    upload = await Uploads(call.uow).alive(request.name, now)
    upload.require_state(UploadState.COMMITTED)
    # The store may be far away; the connection goes back before it is asked.
    await call.uow.rollback()
    seconds = request.ttl_seconds or _GRANT_SECONDS
    return pb.GrantUploadReadResponse(
        manifest_digest=upload.manifest_digest,
        grant=await call.deps.blobs.grant(upload.manifest_digest, request.holder, seconds),
        expire_time=timestamp(now + timedelta(seconds=seconds)),
        file_name=upload.file_name,
        size=upload.size,
    )


def _digest_mismatch(field: str, expected: str, actual: str) -> ArgosyError:
    message_ = f"{field}: the bytes have the SHA-256 {actual}, not {expected}"
    return ArgosyError("DIGEST_MISMATCH", message_, field=field, metadata={"expected": expected, "actual": actual})
