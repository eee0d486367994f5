"""The RPCs that make versions: each checks what can be checked at once and queues a task for the rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.errors import invalid_field, not_found
from libs.common.http.links import parse_link
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from services.dataset.clients.expressions import check_recipe
from services.dataset.domain.datasets import MEDIA_TYPES, TABLE, Dataset
from services.dataset.domain.formats import ARCHIVES, format_of
from services.dataset.domain.recipes import DEFAULT_RECIPE
from services.dataset.domain.sources import web_link
from services.dataset.domain.tasks import CLEAN, IMPORT, SPLIT
from services.dataset.domain.uploads import UploadState
from services.dataset.handlers.cleaning import parse_recipe
from services.dataset.store.repositories import Datasets, Uploads
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_TEXT_COLUMN = "text"
_SOURCE_COLUMN = "source"
# As for cleaning: what half of the field takes as "the same text".
_LEAK_THRESHOLD = 0.8


async def import_version(request: pb.ImportVersionRequest, call: Call[App]) -> task_pb2.Task:
    dataset = await Datasets(call.uow).visible(request.parent, call.principal, writing=True)
    dataset.require_unlocked()
    if request.query and not request.secret:
        raise invalid_field("query", "is for a database, whose URL is in a secret")
    work = {
        "dataset": dataset.name,
        "format": request.format,
        "media_type": MEDIA_TYPES.get(dataset.type, ""),
        "is_table": dataset.type == TABLE,
        # Rows of the version that is the latest now are not stored again; a retry takes the same one.
        "base": dataset.latest_version,
    }
    if request.upload:
        work |= await _uploaded(request, work["media_type"], call)
    elif request.uri:
        call.deps.networks.require_literal(parse_link(web_link(request.uri)), "uri")
        work["uri"] = request.uri
    else:
        if org_of(request.secret) != call.org:
            raise not_found(request.secret)
        work |= {"secret": request.secret, "query": request.query}
    return await _queue(call, IMPORT, dataset.name, work)


async def _uploaded(request: pb.ImportVersionRequest, media_type: str, call: Call[App]) -> dict[str, str]:
    upload = await Uploads(call.uow).alive(request.upload, call.clock.now())
    upload.require_state(UploadState.COMMITTED)
    format_name = request.format or format_of(upload.file_name)
    if format_name is None:
        raise invalid_field("format", f"cannot be told from the file name {upload.file_name!r}")
    if format_name in ARCHIVES and not media_type:
        raise invalid_field("format", "an archive becomes a version of a dataset of type IMAGE, AUDIO or VIDEO only")
    return {"upload": upload.name, "format": format_name}


async def clean_version(request: pb.CleanVersionRequest, call: Call[App]) -> task_pb2.Task:
    dataset, version = await visible_version(call.uow, request.name, call.principal, writing=True)
    dataset.require_unlocked()
    column = request.text_column or _TEXT_COLUMN
    version.require_column(column, "text_column")
    # A second for the longest ones, in which this process has other calls to answer.
    recipe = await asyncio.to_thread(parse_recipe, request.recipe) if request.recipe.strip() else DEFAULT_RECIPE
    await asyncio.to_thread(check_recipe, recipe, {one["name"]: one["type"] for one in version.columns})
    work: dict[str, Any] = {"version": version.name, "text_column": column, "recipe": recipe.to_json()}
    if request.sample_rows:
        work["sample_rows"] = request.sample_rows
    return await _queue(call, CLEAN, version.name, work)


async def split_version(request: pb.SplitVersionRequest, call: Call[App]) -> task_pb2.Task:
    _, version = await visible_version(call.uow, request.name, call.principal)
    await _target(call, request.train_dataset, "train_dataset")
    await _target(call, request.test_dataset, "test_dataset")
    if request.train_dataset == request.test_dataset:
        raise invalid_field("test_dataset", "must be another one than train_dataset")
    text_column = request.text_column or _TEXT_COLUMN
    version.require_column(text_column, "text_column")
    group_column = request.group_column or _SOURCE_COLUMN
    if group_column != _SOURCE_COLUMN:
        version.require_column(group_column, "group_column")
    work = {
        "version": version.name,
        "train_dataset": request.train_dataset,
        "test_dataset": request.test_dataset,
        "group_column": group_column,
        "text_column": text_column,
        "test_fraction": request.test_fraction,
        "near_duplicate_threshold": request.near_duplicate_threshold or _LEAK_THRESHOLD,
        "seed": request.seed,
    }
    return await _queue(call, SPLIT, version.name, work)


async def _target(call: Call[App], name: str, field: str) -> Dataset:
    if not name:
        raise invalid_field(field, "is missing")
    dataset = await Datasets(call.uow).visible(name, call.principal, writing=True)
    dataset.require_unlocked()
    return dataset


async def _queue(call: Call[App], kind: str, target: str, work: dict[str, Any]) -> task_pb2.Task:
    return await call.deps.tasks.create(call.uow, call.org, kind, target, work, call.principal.subject)
