"""Exports: versions as files, made by a task, fetched file by file from any byte on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf import json_format

from libs.common.db.mapping import timestamp, to_proto
from libs.common.domain import DomainError
from libs.common.errors import invalid_field
from libs.common.rpc.call import Call
from libs.common.tasks import store as task_store
from services.dataset.domain.exports import (
    FRESH_TIME,
    Export,
    choices_digest,
    file_name,
    require_choices,
    require_columns,
)
from services.dataset.domain.tasks import EXPORT
from services.dataset.store.repositories import Exports
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_TEXT_COLUMN = "text"
_SPLIT = "train"


def message(export: Export) -> dataset_pb2.VersionExport:
    """The export as callers see it."""
    return to_proto(
        export,
        dataset_pb2.VersionExport(
            expire_time=timestamp(export.expire_time),
            format=export.format,
            files=[dataset_pb2.ExportedFile(**file) for file in export.files],
            manifest_digest=export.manifest_digest,
            task=export.task,
            report=json_format.ParseDict(export.report, dataset_pb2.ExportReport()),
        ),
    )


async def export_version(request: pb.ExportVersionRequest, call: Call[App]) -> task_pb2.Task:
    _, version = await visible_version(call.uow, request.name, call.principal)
    others = [other.split for other in request.other_splits]
    require_choices(
        request.format,
        compression=request.compression,
        text_column=request.text_column,
        with_source=request.with_source,
        split=request.split,
        others=others,
    )
    if request.format == "text":
        version.require_column(request.text_column or _TEXT_COLUMN, "text_column")
    require_columns(request.format, version.column_names)
    splits = [{"split": request.split or _SPLIT, "version": version.name}]
    for other in request.other_splits:
        _, further = await visible_version(call.uow, other.version, call.principal)
        splits.append({"split": other.split, "version": further.name})
    work = {
        "version": version.name,
        "splits": splits,
        "format": request.format,
        "compression": request.compression,
        "text_column": request.text_column or _TEXT_COLUMN,
        "with_source": request.with_source,
        "file_name": file_name(version.name, request.format, request.compression),
    }
    # The bytes would be the same: the task that made them is the answer while they can still be fetched at leisure.
    made = await Exports(call.uow).find_made(version.name, choices_digest(work), call.clock.now() + FRESH_TIME)
    if made is not None:
        return (await task_store.get(call.uow, made.task)).to_proto()
    return await call.deps.tasks.create(call.uow, call.org, EXPORT, version.name, work, call.principal.subject)


async def get_version_export(request: pb.GetVersionExportRequest, call: Call[App]) -> dataset_pb2.VersionExport:
    return message(await _visible(request.name, call))


async def download_version_export(
    request: pb.DownloadVersionExportRequest, call: Call[App]
) -> AsyncIterator[pb.DownloadVersionExportResponse]:
    export = await _visible(request.name, call)
    # A slow reader must not hold a connection for an hour; the files cannot change.
    await call.uow.rollback()
    file = export.file(request.path)
    if request.offset > file["size"]:
        raise invalid_field("offset", f"{file['path']} has {file['size']} bytes")
    async for chunk in call.deps.blobs.get(file["sha256"], request.offset, request.length or None):
        yield pb.DownloadVersionExportResponse(data=chunk)


async def _visible(name: str, call: Call[App]) -> Export:
    """The export, if the principal may see every version in it. Raises NOT_FOUND otherwise, in the same words."""
    try:
        export = await Exports(call.uow).alive(name, call.clock.now())
        for version in export.lineage:
            await visible_version(call.uow, version.name, call.principal)
    except DomainError as error:
        if error.reason != "NOT_FOUND":
            raise
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name) from None
    return export
