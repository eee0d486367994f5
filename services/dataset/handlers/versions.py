"""Versions: what they are, their tags, and grants to read them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from argosy.common.v1 import resource_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf import json_format

from libs.common.blobs import nested_manifests
from libs.common.db.mapping import timestamp, to_proto
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.domain.versions import DatasetVersion
from services.dataset.store.repositories import Datasets, DatasetVersions
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

# A training that reads its data within an hour of its start is the usual case; longer ones ask for more.
_GRANT_SECONDS = 3600


def message(version: DatasetVersion) -> dataset_pb2.DatasetVersion:
    """The version as callers see it."""
    return to_proto(
        version,
        dataset_pb2.DatasetVersion(
            manifest_digest=version.manifest_digest,
            content_digest=version.content_digest,
            row_count=version.row_count,
            byte_count=version.byte_count,
            columns=[dataset_pb2.Column(**column) for column in version.columns],
            tags=version.tags,
            task=version.task,
            report=json_format.ParseDict(version.report, dataset_pb2.Report()) if version.report else None,
            new_byte_count=version.new_byte_count,
        ),
    )


async def get_dataset_version(request: pb.GetDatasetVersionRequest, call: Call[App]) -> dataset_pb2.DatasetVersion:
    _, version = await visible_version(call.uow, request.name, call.principal)
    return message(version)


async def list_dataset_versions(
    request: pb.ListDatasetVersionsRequest, call: Call[App]
) -> pb.ListDatasetVersionsResponse:
    await Datasets(call.uow).visible(request.parent, call.principal)
    found, position = await DatasetVersions(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListDatasetVersionsResponse(
        dataset_versions=[message(version) for version in found], next_page_token=PageToken.encode(request, position)
    )


async def tag_dataset_version(request: pb.TagDatasetVersionRequest, call: Call[App]) -> dataset_pb2.DatasetVersion:
    repository, now = DatasetVersions(call.uow), call.clock.now()
    # The lock on the dataset makes a tag stay unique when two calls move it at once.
    dataset, _ = await visible_version(call.uow, request.name, call.principal, lock_dataset=True)
    version = await repository.get(request.name)
    version.require_etag(request.etag)
    for other in await repository.tagged(dataset.name, request.add_tags):
        if other.name != version.name:
            other.retag((), request.add_tags)
            other.update_time = now
            await repository.save(other)
    version.retag(request.add_tags, request.remove_tags)
    version.update_time = now
    await repository.save(version)
    call.uow.emit("dataset.version.tagged", version)
    return message(version)


async def grant_read(request: pb.GrantReadRequest, call: Call[App]) -> pb.GrantReadResponse:
    _, version = await visible_version(call.uow, request.name, call.principal)
    # The store may be far away; the connection goes back before it is asked.
    await call.uow.rollback()
    seconds = request.ttl_seconds or _GRANT_SECONDS
    expire_time, blobs = call.clock.now() + timedelta(seconds=seconds), call.deps.blobs
    media = nested_manifests(await blobs.load_manifest(version.manifest_digest)) if request.media else []
    return pb.GrantReadResponse(
        manifest_digest=version.manifest_digest,
        grant=await blobs.grant(version.manifest_digest, request.holder, seconds),
        media_grant=await blobs.grant(media[0], request.holder, seconds) if media else "",
        expire_time=timestamp(expire_time),
        row_count=version.row_count,
        secrecy=resource_pb2.Secrecy.Name(version.secrecy),
    )
