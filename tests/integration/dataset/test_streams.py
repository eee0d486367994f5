"""Rows that keep coming become versions: each row once, in the order of its arrival."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import options_pb2, task_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from dataset_client import Client, refusal
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, ParseDict
from test_killed import patient, service, until

from deploy.local.nats import Server
from libs.common.ids import uuid7
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay
from tests.subjects import numbered, subjects

DATASET = "orgs/acme/datasets/logs"
NAME = f"{DATASET}/streams/live"


def batch(*numbers: int, request_id: str = "") -> pb.AppendStreamRowsRequest:
    rows = [{"n": number, "text": f"row {number}"} for number in numbers]
    return ParseDict({"name": NAME, "rows": rows, "request_id": request_id}, pb.AppendStreamRowsRequest())


async def stream(client: Client, **rules: Any) -> dataset_pb2.DatasetStream:
    await client.dataset("logs")
    given = dataset_pb2.DatasetStream(**rules)
    return await client.CreateDatasetStream(
        pb.CreateDatasetStreamRequest(parent=DATASET, dataset_stream_id="live", dataset_stream=given)
    )


async def rows_of(client: Client, version: str) -> list[dict[str, Any]]:
    page = await client.PreviewRows(pb.PreviewRowsRequest(parent=version, page_size=1000))
    return sorted((MessageToDict(row.fields) for row in page.rows), key=lambda row: row["n"])


async def test_rows_become_versions_in_their_order(worker: Client) -> None:
    made = await stream(worker, roll_rows=5)
    assert (made.roll_rows, made.roll_seconds, made.pending_rows) == (5, 300, 0)
    get, versions = pb.GetDatasetStreamRequest(name=NAME), pb.ListDatasetVersionsRequest(parent=DATASET)
    async with asyncio.timeout(90):
        for rolls in (1, 2):
            for first in range(10 * rolls - 10, 10 * rolls, 2):
                await worker.AppendStreamRows(batch(first, first + 1))
            while (await worker.GetDatasetStream(get)).roll_count < rolls:
                await asyncio.sleep(0.2)
        await worker.finish(task_pb2.Task(name=(await worker.GetDatasetStream(get)).task))
    newer, older = (await worker.ListDatasetVersions(versions)).dataset_versions[-2:]
    first, second = [[row["n"] for row in await rows_of(worker, version.name)] for version in (older, newer)]
    assert first + second == [float(number) for number in range(len(first) + len(second))]
    assert len(first) >= 5
    assert [parent.name.split("/")[2] for parent in older.lineage.parents] == ["uploads"]


async def test_messages_of_a_subject_become_versions(worker: Client, nats_server: Server) -> None:
    source = dataset_pb2.NatsSource(uri=nats_server.url(), subject="live.*")
    async with subjects(nats_server.url()) as outside:
        await outside.keep("LIVE", "live.>")
        await stream(worker, roll_rows=5, nats_source=source)
        await outside.publish("live.web", numbered(*range(12)))
        get = pb.GetDatasetStreamRequest(name=NAME)
        async with asyncio.timeout(60):
            while not (now := await worker.GetDatasetStream(get)).roll_count:
                await asyncio.sleep(0.2)
        await worker.finish(task_pb2.Task(name=now.task))
        if now.pending_rows:
            await worker.finish(await worker.RollDatasetStream(pb.RollDatasetStreamRequest(name=NAME)))
        await outside.forget("LIVE")
    found = (await worker.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=DATASET))).dataset_versions
    numbers = [row["n"] for version in reversed(found) for row in await rows_of(worker, version.name)]
    assert numbers == list(range(12))


async def test_a_batch_sent_twice_is_taken_once(worker: Client) -> None:
    await stream(worker, roll_seconds=1)
    request = batch(1, 2, request_id=uuid7())
    first, again = await worker.AppendStreamRows(request), await worker.AppendStreamRows(request)
    assert first == again
    async with asyncio.timeout(60):
        while not (now := await worker.GetDatasetStream(pb.GetDatasetStreamRequest(name=NAME))).roll_count:
            await asyncio.sleep(0.2)
    assert now.row_count == 2
    done = await worker.finish(task_pb2.Task(name=now.task))
    assert (done.state, done.result["row_count"]) == (task_pb2.Task.STATE_SUCCEEDED, 2), done


async def test_refusals_name_what_is_wrong(client: Client) -> None:
    await stream(client)
    faulty = batch(1)
    faulty.rows.add().fields["x"].number_value = float("nan")
    error = await refusal(client.AppendStreamRows(faulty))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "rows[1]")
    assert (await refusal(client.AppendStreamRows(pb.AppendStreamRowsRequest(name=NAME)))).reason == "INVALID_FIELD"
    assert (await refusal(client.RollDatasetStream(pb.RollDatasetStreamRequest(name=NAME)))).reason == "STATE_CONFLICT"
    await client.dataset("photos", type=dataset_pb2.DATASET_TYPE_IMAGE)
    photos = pb.CreateDatasetStreamRequest(parent="orgs/acme/datasets/photos", dataset_stream={})
    assert (await refusal(client.CreateDatasetStream(photos))).metadata["field"] == "parent"
    await client.AppendStreamRows(batch(1))
    delete = pb.DeleteDatasetStreamRequest(name=NAME)
    assert (await refusal(client.DeleteDatasetStream(delete))).reason == "STATE_CONFLICT"
    lock = pb.UpdateDatasetRequest(
        dataset=dataset_pb2.Dataset(name=DATASET, locked=True), update_mask=FieldMask(paths=["locked"])
    )
    await client.UpdateDataset(lock)
    assert (await refusal(client.AppendStreamRows(batch(2)))).reason == "STATE_CONFLICT"
    lock.dataset.locked = False
    await client.UpdateDataset(lock)
    task = await client.RollDatasetStream(pb.RollDatasetStreamRequest(name=NAME))
    await client.AppendStreamRows(batch(3))
    # Nobody works here: the version before is never made.
    error = await refusal(client.RollDatasetStream(pb.RollDatasetStreamRequest(name=NAME)))
    assert task.name in error.message


async def test_only_who_may_change_the_dataset_sends_rows(client: Client) -> None:
    await client.dataset("logs", visibility=dataset_pb2.VISIBILITY_USER, shared_with=["orgs/acme/users/bob"])
    create = pb.CreateDatasetStreamRequest(
        parent=DATASET, dataset_stream_id="live", dataset_stream=dataset_pb2.DatasetStream()
    )
    bob, eve = (client.other(subject=f"users/{name}", role=options_pb2.ROLE_EDITOR) for name in ("bob", "eve"))
    assert (await refusal(bob.CreateDatasetStream(create))).reason == "ROLE_MISSING"
    await client.CreateDatasetStream(create)
    assert (await refusal(bob.AppendStreamRows(batch(1)))).reason == "ROLE_MISSING"
    assert (await bob.GetDatasetStream(pb.GetDatasetStreamRequest(name=NAME))).name == NAME
    for call in (
        eve.AppendStreamRows(batch(1)),
        eve.GetDatasetStream(pb.GetDatasetStreamRequest(name=NAME)),
        eve.ListDatasetStreams(pb.ListDatasetStreamsRequest(parent=DATASET)),
    ):
        assert (await refusal(call)).reason == "NOT_FOUND"
    for other in (bob, eve):
        await other.close()


@pytest.mark.timeout(180)
async def test_no_row_is_lost_or_doubled_when_the_service_is_killed(
    tmp_path: Path, database_url: str, nats_server: Any, ray: RunningRay
) -> None:
    mesh = Mesh(tmp_path)
    async with service(mesh, tmp_path, database_url, nats_server, ray, ["rpc", "jobs"]) as (rpc, jobs):
        client = Client(mesh, None)  # type: ignore[arg-type]
        create = pb.CreateDatasetRequest(parent="orgs/acme", dataset_id="logs", dataset=dataset_pb2.Dataset())
        await patient(client.CreateDataset, create)
        given = dataset_pb2.DatasetStream(roll_rows=20, roll_seconds=3)
        new = pb.CreateDatasetStreamRequest(parent=DATASET, dataset_stream_id="live", dataset_stream=given)
        await patient(client.CreateDatasetStream, new)
        for number in range(0, 120, 3):
            await patient(client.AppendStreamRows, batch(*range(number, number + 3), request_id=uuid7()))
            if number % 30 == 15:
                rpc.replace()
            if number == 60:
                jobs.replace()
        get = pb.GetDatasetStreamRequest(name=NAME)
        async with asyncio.timeout(120):
            while (now := await patient(client.GetDatasetStream, get)).pending_rows:
                await asyncio.sleep(0.3)
        await until(client, now.task, lambda task: task.state >= task_pb2.Task.STATE_SUCCEEDED)
        found = (
            await patient(client.ListDatasetVersions, pb.ListDatasetVersionsRequest(parent=DATASET))
        ).dataset_versions
        pages = [
            await patient(client.PreviewRows, pb.PreviewRowsRequest(parent=one.name, page_size=1000)) for one in found
        ]
        numbers = [int(row.fields["n"]) for page in pages for row in page.rows]
        assert (now.row_count, len(found)) == (120, now.roll_count)
        assert sorted(numbers) == list(range(120))
        await client.close()
