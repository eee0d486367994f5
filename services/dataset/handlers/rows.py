"""Rows of versions: a page for people, batches for programs, the difference of two, the file of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf import json_format, struct_pb2

from libs.common.errors import ArgosyError, invalid_field, not_found
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.clients.rows import PreviewedRow
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store.visible import visible_row, visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_DIFF_EXAMPLES = 20


def message(row: PreviewedRow) -> pb.Row:
    """The row as callers see it."""
    fields = json_format.ParseDict(row.fields, struct_pb2.Struct())
    return pb.Row(row_id=row.row_id, source=row.source, position=row.position, fields=fields)


async def diff_dataset_versions(
    request: pb.DiffDatasetVersionsRequest, call: Call[App]
) -> pb.DiffDatasetVersionsResponse:
    dataset, version = await visible_version(call.uow, request.name, call.principal)
    if not request.base.startswith(f"{dataset.name}/versions/"):
        raise invalid_field("base", "is a version of another dataset")
    _, base = await visible_version(call.uow, request.base, call.principal)
    await call.uow.rollback()
    found = await call.deps.rows.difference(base.manifest_digest, version.manifest_digest, _DIFF_EXAMPLES)
    return pb.DiffDatasetVersionsResponse(
        added=found.added,
        removed=found.removed,
        common=found.common,
        added_examples=[message(row) for row in found.added_examples],
        removed_examples=[message(row) for row in found.removed_examples],
    )


async def preview_rows(request: pb.PreviewRowsRequest, call: Call[App]) -> pb.PreviewRowsResponse:
    start = _start(PageToken.decode(request))
    _, version = await visible_version(call.uow, request.parent, call.principal)
    await call.uow.rollback()
    rows, end = await call.deps.rows.preview(version.manifest_digest, start, page_size(request.page_size))
    position = str(end) if end < version.row_count else ""
    return pb.PreviewRowsResponse(
        rows=[message(row) for row in rows], next_page_token=PageToken.encode(request, position)
    )


async def read_version(request: pb.ReadVersionRequest, call: Call[App]) -> AsyncIterator[pb.ReadVersionResponse]:
    _, version = await visible_version(call.uow, request.name, call.principal)
    # A slow reader must not hold a connection for an hour; the rows cannot change.
    await call.uow.rollback()
    for column in request.projection:
        version.require_column(column, "projection")
    start, stop = _range(request, version)
    projection = list(dict.fromkeys(request.projection))
    async for batch, end in call.deps.rows.batches(version.manifest_digest, projection, start, stop):
        yield pb.ReadVersionResponse(batch=batch, cursor=str(end))


async def download_row_media(
    request: pb.DownloadRowMediaRequest, call: Call[App]
) -> AsyncIterator[pb.DownloadRowMediaResponse]:
    version = await visible_row(call.uow, request.name, call.principal, call.clock.now())
    # A slow reader must not hold a connection for an hour; the file cannot change.
    await call.uow.rollback()
    try:
        file = await call.deps.rows.file(version.manifest_digest, request.name.rsplit("/", 1)[1])
    except KeyError:
        raise not_found(request.name) from None
    if file is None:
        raise invalid_field("name", "there is no file for this row")
    if request.offset > file.size:
        raise invalid_field("offset", f"the file has {file.size} bytes")
    yield pb.DownloadRowMediaResponse(content_type=file.content_type, size=file.size, sha256=file.sha256)
    async for chunk in call.deps.blobs.get(file.sha256, request.offset, request.length or None):
        yield pb.DownloadRowMediaResponse(data=chunk)


def _range(request: pb.ReadVersionRequest, version: DatasetVersion) -> tuple[int, int]:
    """The rows of the shard behind the cursor."""
    count = request.shard_count or 1
    if request.shard >= count:
        raise invalid_field("shard", f"must be less than shard_count, {count}")
    start, stop = version.row_count * request.shard // count, version.row_count * (request.shard + 1) // count
    if not request.cursor:
        return start, stop
    if not request.cursor.isascii() or not request.cursor.isdigit() or not start <= int(request.cursor) <= stop:
        raise invalid_field("cursor", "is not one that this shard gave")
    return int(request.cursor), stop


def _start(position: str) -> int:
    if not position:
        return 0
    if not position.isascii() or not position.isdigit():
        raise ArgosyError("PAGE_TOKEN_INVALID", "page_token: is not one that this list gave", field="page_token")
    return int(position)
