"""Streams: rows that keep coming."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb

from libs.common.bus.external import NATS_PORTS
from libs.common.db.mapping import from_proto, timestamp, to_proto
from libs.common.errors import invalid_field, not_found
from libs.common.http.links import parse_server
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.rpc.structs import from_struct
from services.dataset.domain.datasets import MEDIA_TYPES
from services.dataset.domain.streams import DEFAULT_ROWS, DEFAULT_SECONDS, MOST_ROW_BYTES, Batch, Stream
from services.dataset.store.repositories import Datasets
from services.dataset.store.streams import Streams

if TYPE_CHECKING:
    from services.dataset.app import App

_FIGURES = (
    "roll_rows",
    "roll_seconds",
    "pending_rows",
    "pending_bytes",
    "row_count",
    "roll_count",
    "task",
    "source_position",
    "source_error",
    "rejected_count",
    "last_rejection",
)


def message(stream: Stream) -> dataset_pb2.DatasetStream:
    """The stream as callers see it."""
    shown = dataset_pb2.DatasetStream(**{field: getattr(stream, field) for field in _FIGURES})
    if stream.roll_time is not None:
        shown.roll_time.CopyFrom(timestamp(stream.roll_time))
    if stream.source_subject:
        shown.nats_source.subject = stream.source_subject
        if stream.source_uri:
            shown.nats_source.uri = stream.source_uri
        else:
            shown.nats_source.secret = stream.source_secret
    return to_proto(stream, shown)


async def create_dataset_stream(request: pb.CreateDatasetStreamRequest, call: Call[App]) -> dataset_pb2.DatasetStream:
    given, now = request.dataset_stream, call.clock.now()
    dataset = await Datasets(call.uow).visible(request.parent, call.principal, writing=True)
    if dataset.type in MEDIA_TYPES:
        raise invalid_field("parent", f"is a dataset of {MEDIA_TYPES[dataset.type]} files; a stream has rows of JSON")
    if given.HasField("nats_source"):
        _require_allowed(given.nats_source, call)
    stream = Stream(
        uid=uuid7(),
        name=f"{dataset.name}/streams/{request.dataset_stream_id or resource_id('st')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        secrecy=dataset.secrecy,
        **from_proto(given),
        roll_rows=given.roll_rows or DEFAULT_ROWS,
        roll_seconds=given.roll_seconds or DEFAULT_SECONDS,
        source_uri=given.nats_source.uri,
        source_secret=given.nats_source.secret,
        source_subject=given.nats_source.subject,
    )
    await Streams(call.uow).insert(stream)
    return message(stream)


async def get_dataset_stream(request: pb.GetDatasetStreamRequest, call: Call[App]) -> dataset_pb2.DatasetStream:
    stream = await Streams(call.uow).get(request.name)
    await Datasets(call.uow).visible(stream.parent, call.principal)
    return message(stream)


async def list_dataset_streams(request: pb.ListDatasetStreamsRequest, call: Call[App]) -> pb.ListDatasetStreamsResponse:
    await Datasets(call.uow).visible(request.parent, call.principal)
    found, position = await Streams(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListDatasetStreamsResponse(
        dataset_streams=[message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def delete_dataset_stream(request: pb.DeleteDatasetStreamRequest, call: Call[App]) -> dataset_pb2.DatasetStream:
    stream, now = await _locked(request.name, call), call.clock.now()
    stream.require_etag(request.etag)
    if stream.source_subject:
        # Rows may come at any moment, so nobody could wait until none does.
        stream.hasten(now)
    else:
        stream.require_pending(False)
    await Streams(call.uow).soft_delete(stream, now)
    return message(stream)


async def append_stream_rows(request: pb.AppendStreamRowsRequest, call: Call[App]) -> dataset_pb2.DatasetStream:
    lines = await asyncio.to_thread(_lines, request)
    # Durable before the row says so, and before a connection is taken. What is refused is garbage, and is collected.
    blob = await call.deps.blobs.put(lines)
    stream, now = await _locked(request.name, call), call.clock.now()
    stream.require_sent()
    batch = Batch(len(request.rows), blob.size, blob.sha256)
    stream.append(batch, now)
    await Streams(call.uow).add_batch(stream, batch)
    await Streams(call.uow).save(stream)
    return message(stream)


async def roll_dataset_stream(request: pb.RollDatasetStreamRequest, call: Call[App]) -> task_pb2.Task:
    return await call.deps.rolling.roll(await _locked(request.name, call), call.uow, call.clock.now())


def _require_allowed(source: dataset_pb2.NatsSource, call: Call[App]) -> None:
    """Refuses a source that this caller may not name."""
    if source.secret:
        if org_of(source.secret) != call.org:
            raise not_found(source.secret)
        return
    field = "dataset_stream.nats_source.uri"
    call.deps.networks.require_literal(parse_server(source.uri, NATS_PORTS, field), field)


def _lines(request: pb.AppendStreamRowsRequest) -> bytes:
    rows = (from_struct(row, f"rows[{number}]", MOST_ROW_BYTES) for number, row in enumerate(request.rows))
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


async def _locked(name: str, call: Call[App]) -> Stream:
    """The stream, locked, if the caller may change its dataset and nobody has locked that."""
    stream = await Streams(call.uow).get(name, for_update=True)
    dataset = await Datasets(call.uow).visible(stream.parent, call.principal, writing=True)
    dataset.require_unlocked()
    return stream
