"""Datasets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from argosy.dataset.v1 import dataset_events_pb2, dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.db.repository import position
from libs.common.domain import Secrecy, inherit_secrecy
from libs.common.errors import invalid_field
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.domain.datasets import Dataset, Visibility
from services.dataset.domain.versions import Content, new_version
from services.dataset.handlers import versions
from services.dataset.store.repositories import Datasets, DatasetVersions, Wanted

if TYPE_CHECKING:
    from services.dataset.app import App

_PLAIN = ("display_name", "description", "source", "project_space", "locked")
_MUTABLE = frozenset({*_PLAIN, "labels", "secrecy", "shared_with", "visibility"})


def message(dataset: Dataset) -> dataset_pb2.Dataset:
    """The dataset as callers see it."""
    return to_proto(
        dataset,
        dataset_pb2.Dataset(
            **{field: getattr(dataset, field) for field in _PLAIN},
            type=dataset_pb2.DatasetType.Name(dataset.type),
            visibility=dataset_pb2.Visibility.Name(dataset.visibility),
            latest_version=dataset.latest_version,
            shared_with=dataset.shared_with,
        ),
    )


async def get_dataset(request: pb.GetDatasetRequest, call: Call[App]) -> dataset_pb2.Dataset:
    return message(await Datasets(call.uow).visible(request.name, call.principal))


async def list_datasets(request: pb.ListDatasetsRequest, call: Call[App]) -> pb.ListDatasetsResponse:
    datasets, begin = Datasets(call.uow), PageToken.decode(request)
    if request.after and not begin:
        begin = position(await datasets.visible(request.after, call.principal, deleted=True))
    found, following = await datasets.list_visible(
        request.parent,
        call.principal,
        page_size(request.page_size),
        begin,
        request.show_deleted,
        Wanted(request.search, request.type, request.project_space, _labels(request.labels), request.oldest_first),
    )
    return pb.ListDatasetsResponse(
        datasets=[message(dataset) for dataset in found], next_page_token=PageToken.encode(request, following)
    )


def _labels(given: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (label.partition("=") for label in given)}


async def create_dataset(request: pb.CreateDatasetRequest, call: Call[App]) -> dataset_pb2.Dataset:
    given, now = request.dataset, call.clock.now()
    standard = from_proto(given)
    dataset = Dataset(
        uid=uuid7(),
        name=f"{request.parent}/datasets/{request.dataset_id or resource_id('ds')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        **standard | {"secrecy": inherit_secrecy(standard["secrecy"])},
        **{field: getattr(given, field) for field in _PLAIN},
        type=given.type or dataset_pb2.DATASET_TYPE_TEXT,
        visibility=given.visibility or Visibility.ORGANIZATION,
        shared_with=list(given.shared_with),
    )
    await Datasets(call.uow).insert(dataset)
    call.uow.emit("dataset.dataset.created", dataset)
    return message(dataset)


async def update_dataset(request: pb.UpdateDatasetRequest, call: Call[App]) -> dataset_pb2.Dataset:
    given, repository = request.dataset, Datasets(call.uow)
    dataset = await repository.visible(given.name, call.principal, for_update=True)
    dataset.require_etag(given.etag)
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field == "secrecy":
            dataset.change_secrecy(inherit_secrecy(Secrecy(given.secrecy)))
        elif field == "visibility":
            dataset.visibility = given.visibility or Visibility.ORGANIZATION
        elif field == "shared_with":
            dataset.shared_with = list(given.shared_with)
        else:
            setattr(dataset, field, dict(given.labels) if field == "labels" else getattr(given, field))
    dataset.update_time = call.clock.now()
    await repository.save(dataset)
    call.uow.emit("dataset.dataset.updated", dataset)
    return message(dataset)


async def delete_dataset(request: pb.DeleteDatasetRequest, call: Call[App]) -> dataset_pb2.Dataset:
    repository = Datasets(call.uow)
    dataset = await repository.visible(request.name, call.principal, for_update=True)
    dataset.require_etag(request.etag)
    await repository.soft_delete(dataset, call.clock.now())
    call.uow.emit("dataset.dataset.deleted", dataset)
    return message(dataset)


async def undelete_dataset(request: pb.UndeleteDatasetRequest, call: Call[App]) -> dataset_pb2.Dataset:
    repository, now = Datasets(call.uow), call.clock.now()
    dataset = await repository.visible(request.name, call.principal, deleted=True, for_update=True)
    dataset.require_etag(request.etag)
    dataset.require_undeletable(now)
    await repository.undelete(dataset, now)
    call.uow.emit("dataset.dataset.undeleted", dataset)
    return message(dataset)


async def roll_back_dataset(request: pb.RollBackDatasetRequest, call: Call[App]) -> dataset_pb2.DatasetVersion:
    repository = Datasets(call.uow)
    dataset = await repository.visible(request.name, call.principal, for_update=True)
    earlier = await DatasetVersions(call.uow).get(request.version)
    if earlier.parent != dataset.name:
        raise invalid_field("version", "is a version of another dataset")
    version = new_version(
        dataset,
        Content(
            earlier.manifest_digest, earlier.content_digest, earlier.row_count, earlier.byte_count, earlier.columns
        ),
        uid=uuid7(),
        now=call.clock.now(),
        creator=call.principal.subject,
        lineage=[earlier.as_parent("rolled_back_to")],
        parents_secrecy=[earlier.secrecy],
    )
    await DatasetVersions(call.uow).insert(version)
    await repository.save(dataset)
    payload = dataset_events_pb2.DatasetVersionCreated(
        version=version.name, manifest_digest=version.manifest_digest, row_count=version.row_count
    )
    call.uow.emit("dataset.version.created", version, payload)
    return versions.message(version)
