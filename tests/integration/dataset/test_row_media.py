"""The file of a row as callers fetch it: whole, in ranges, and only by those who may see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from argosy.common.v1 import options_pb2
from argosy.dataset.v1 import dataset_pb2, human_work_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from argosy.dataset.v1 import human_work_service_pb2 as work_pb
from dataset_client import Client, refusal
from google.protobuf import json_format, struct_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from test_dataset_rpcs import publish
from test_engine_media_import import imported

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.common.ids import uuid7
from services.dataset.domain.datasets import Visibility
from services.dataset.domain.versions import Content, new_version
from services.dataset.store.repositories import Datasets, DatasetVersions
from tests.unit.dataset.media_files import image, sound
from tests.unit.dataset.test_engine_archives import zipped

NAME = "orgs/acme/datasets/pictures"
CAT, DOG = image(), image(400, 300, "JPEG")
IMAGES, AUDIO = dataset_pb2.DATASET_TYPE_IMAGE, dataset_pb2.DATASET_TYPE_AUDIO


async def published(client: Client, archive: bytes, name: str = NAME, kind: str = "image") -> list[str]:
    """Imports an archive into a dataset without a task; the names of the rows."""
    app = client.app
    made = await asyncio.to_thread(imported, app.blobs, archive, kind)
    async with app.database.system() as uow:
        dataset = await Datasets(uow).get(name, for_update=True)
        fields = ("manifest_digest", "content_digest", "row_count", "byte_count", "columns")
        content = Content(**{field: made[field] for field in fields})
        version = new_version(dataset, content, uid=uuid7(), now=client.service.clock.now(), creator="users/alice")
        await DatasetVersions(uow).insert(version)
        await Datasets(uow).save(dataset)
    return await rows_of(client, version.name)


async def rows_of(client: Client, version: str) -> list[str]:
    preview = await client.PreviewRows(pb.PreviewRowsRequest(parent=version))
    return [f"{version}/rows/{row.row_id}" for row in preview.rows]


@pytest.fixture
async def pictures(client: Client) -> list[str]:
    """The rows of a cat and a dog, in a dataset that is its creator's alone."""
    await client.dataset("pictures", type=IMAGES, visibility=dataset_pb2.VISIBILITY_USER)
    return await published(client, zipped(("cat.png", CAT), ("dog.jpg", DOG)))


async def fetched(client: Client, name: str, **given: int) -> list[pb.DownloadRowMediaResponse]:
    return [part async for part in client.DownloadRowMedia(pb.DownloadRowMediaRequest(name=name, **given))]


async def refused(client: Client, name: str, **given: int) -> tuple[str, str]:
    """Reason and field of the refusal."""
    error = await refusal(fetched(client, name, **given))
    return error.reason, error.metadata.get("field", "")


def data(parts: list[pb.DownloadRowMediaResponse]) -> bytes:
    return b"".join(part.data for part in parts)


async def test_the_file_of_a_row_comes_whole_and_in_ranges(client: Client, pictures: list[str]) -> None:
    first, *rest = await fetched(client, pictures[0])
    assert (first.content_type, first.size, first.data) == ("image/png", len(CAT), b"")
    assert data(rest) == CAT
    assert len(first.sha256) == 64
    dog = await fetched(client, pictures[1], offset=100, length=50)
    assert (dog[0].content_type, dog[0].size, data(dog)) == ("image/jpeg", len(DOG), DOG[100:150])
    assert data(await fetched(client, pictures[1], offset=len(DOG) - 7)) == DOG[-7:]
    assert data(await fetched(client, pictures[1], offset=len(DOG))) == b""
    assert await refused(client, pictures[1], offset=len(DOG) + 1) == ("INVALID_FIELD", "offset")


async def test_a_training_reads_files_only_with_a_grant_for_them(client: Client, pictures: list[str]) -> None:
    peer, version = client.as_peer("training"), pictures[0].rsplit("/rows/", 1)[0]
    request = pb.GrantReadRequest(name=version, holder="orgs/acme/training/tasks/t")
    assert not (await peer.GrantRead(request)).media_grant
    request.media = True
    granted = await peer.GrantRead(request)
    digest = (await fetched(client, pictures[0]))[0].sha256
    assert await BlobStore.from_grant(granted.media_grant).read(digest) == CAT
    with pytest.raises(DomainError) as caught:
        await BlobStore.from_grant(granted.grant).read(digest)
    assert caught.value.reason == "GRANT_DENIED"
    await client.dataset("docs")
    request.name = (await publish(client, [{"text": "a"}])).name
    assert not (await peer.GrantRead(request)).media_grant
    await peer.close()


async def test_a_large_file_comes_in_parts(client: Client) -> None:
    await client.dataset("pictures", type=AUDIO)
    tone = sound(seconds=200.0)
    (row,) = await published(client, zipped(("a.wav", tone)), kind="audio")
    parts = await fetched(client, row)
    assert (parts[0].content_type, data(parts) == tone) == ("audio/wav", True)
    assert [len(part.data) for part in parts] == [0, 1 << 20, 1 << 20, 1 << 20, len(tone) - (3 << 20)]


async def test_what_is_not_there_is_told(client: Client, pictures: list[str]) -> None:
    version = pictures[0].rsplit("/rows/", 1)[0]
    assert (await refused(client, f"{version}/rows/{'0' * 64}"))[0] == "NOT_FOUND"
    assert (await refused(client, pictures[0].replace("/v1/", "/v9/")))[0] == "NOT_FOUND"
    assert await refused(client, f"{version}/rows/cat") == ("INVALID_FIELD", "name")
    await client.dataset("docs")
    texts = await publish(client, [{"text": "a", "sha256": "0" * 64}])
    (row,) = await rows_of(client, texts.name)
    assert await refused(client, row) == ("INVALID_FIELD", "name")


async def test_a_column_names_no_file(client: Client, pictures: list[str]) -> None:
    """Anybody can write the digest of somebody else's file into a row of his own."""
    digest = (await fetched(client, pictures[0]))[0].sha256
    await client.dataset("docs")
    texts = await publish(client, [{"text": "a", "sha256": digest, "media_type": "image"}])
    (row,) = await rows_of(client, texts.name)
    assert await refused(client, row) == ("INVALID_FIELD", "name")


async def test_who_does_not_see_the_version_gets_no_file(client: Client, pictures: list[str]) -> None:
    bob = client.other(subject="users/bob", role=options_pb2.ROLE_EDITOR)
    stranger = client.other(org="umbrella", subject="users/alice", role=options_pb2.ROLE_ADMIN)
    for somebody in (bob, stranger):
        assert (await refused(somebody, pictures[0]))[0] == "NOT_FOUND"
    await change(client, shared_with=["orgs/acme/users/bob", "orgs/umbrella"])
    for somebody in (bob, stranger):
        assert data(await fetched(somebody, pictures[0])) == CAT
        await somebody.close()


# Rows in somebody's hands.

PROJECT = "orgs/acme/workProjects/look"


async def change(client: Client, **fields: Any) -> None:
    request = pb.UpdateDatasetRequest(
        dataset=dataset_pb2.Dataset(name=NAME, **fields), update_mask=FieldMask(paths=list(fields))
    )
    await client.UpdateDataset(request)


async def project(creator: Client, subject: str, source: str, manager: Client | None = None, **rules: Any) -> None:
    """A project with one item, which somebody else adds where there is a manager."""
    await creator.CreateWorkProject(
        work_pb.CreateWorkProjectRequest(
            parent="orgs/acme",
            work_project_id="look",
            template="image-description",
            work_project=human_work_pb2.WorkProject(source=source, **rules),
        )
    )
    items = [human_work_pb2.WorkItem(subject=subject)]
    await (manager or creator).AddWorkItems(work_pb.AddWorkItemsRequest(parent=PROJECT, items=items))


def version_of(row: str) -> str:
    return row.rsplit("/rows/", 1)[0]


def person(client: Client, name: str) -> Client:
    return client.other(subject=f"users/{name}", role=options_pb2.ROLE_VIEWER)


async def take(somebody: Client) -> human_work_pb2.WorkAssignment:
    return (await somebody.TakeWork(work_pb.TakeWorkRequest(name=PROJECT))).assignment


async def answer(somebody: Client, assignment: human_work_pb2.WorkAssignment) -> None:
    given = json_format.ParseDict({"description": "a cat"}, struct_pb2.Struct())
    await somebody.SubmitWork(work_pb.SubmitWorkRequest(name=assignment.name, answer=given))


async def test_who_holds_a_row_sees_its_file_as_long_as_he_holds_it(client: Client, pictures: list[str]) -> None:
    ann, rev, eve = (person(client, name) for name in ("ann", "rev", "eve"))
    await project(client, pictures[0], version_of(pictures[0]), reviewers=["users/rev"], review="WORK_REVIEW_ALL")
    for somebody in (ann, rev, eve):
        assert (await refused(somebody, pictures[0]))[0] == "NOT_FOUND"
    held = await take(ann)
    assert data(await fetched(ann, pictures[0])) == CAT
    # That very row, and that very person: not of the same name elsewhere either.
    namesake = client.other(org="umbrella", subject="users/ann", role=options_pb2.ROLE_ADMIN)
    assert (await refused(ann, pictures[1]))[0] == "NOT_FOUND"
    for somebody in (rev, eve, namesake):
        assert (await refused(somebody, pictures[0]))[0] == "NOT_FOUND"
    assert (await refusal(ann.PreviewRows(pb.PreviewRowsRequest(parent=version_of(pictures[0]))))).reason == "NOT_FOUND"
    await answer(ann, held)
    assert (await refused(ann, pictures[0]))[0] == "NOT_FOUND"
    # Who reviews it holds it too; what he returns is in its author's hands again.
    item = (await rev.TakeReview(work_pb.TakeReviewRequest(name=PROJECT))).item
    assert data(await fetched(rev, pictures[0])) == CAT
    back = work_pb.ReturnedAnswer(assignment=held.name, reason="It is no cat.")
    await rev.DecideReview(work_pb.DecideReviewRequest(name=item.name, returns=[back]))
    assert (await refused(rev, pictures[0]))[0] == "NOT_FOUND"
    assert data(await fetched(ann, pictures[0])) == CAT
    await ann.ReleaseWork(work_pb.ReleaseWorkRequest(name=held.name, reason="too dark"))
    assert (await refused(ann, pictures[0]))[0] == "NOT_FOUND"


async def test_a_lease_that_ran_out_shows_nothing(client: Client, pictures: list[str]) -> None:
    ann = person(client, "ann")
    await project(client, pictures[0], version_of(pictures[0]), lease_seconds=3)
    await take(ann)
    assert data(await fetched(ann, pictures[0])) == CAT
    await asyncio.sleep(3.1)
    assert (await refused(ann, pictures[0]))[0] == "NOT_FOUND"


@pytest.mark.parametrize("source", ["", "orgs/acme/datasets/docs/versions/v1", "the cats"])
async def test_a_project_about_something_else_opens_nothing(client: Client, pictures: list[str], source: str) -> None:
    """Whoever manages any project writes what he likes into its items, and takes them himself."""
    eve = client.other(subject="users/eve", role=options_pb2.ROLE_EDITOR)
    await client.dataset("docs")
    await publish(client, [{"text": "a"}])
    await project(client, pictures[0], source, eve, managers=["users/eve"])
    assert (await take(eve)).item.subject == pictures[0]
    assert (await refused(eve, pictures[0]))[0] == "NOT_FOUND"


async def test_nobody_makes_a_project_about_what_he_does_not_see(client: Client, pictures: list[str]) -> None:
    eve = client.other(subject="users/eve", role=options_pb2.ROLE_EDITOR)
    assert (await refusal(project(eve, pictures[0], version_of(pictures[0])))).reason == "NOT_FOUND"


async def test_who_lost_the_dataset_shows_it_to_nobody(client: Client, pictures: list[str]) -> None:
    eve = client.other(subject="users/eve", role=options_pb2.ROLE_EDITOR)
    ann = person(client, "ann")
    await change(client, shared_with=["orgs/acme/users/eve"])
    await project(eve, pictures[0], version_of(pictures[0]), overlap=2)
    for somebody in (eve, ann):
        await take(somebody)
        assert data(await fetched(somebody, pictures[0])) == CAT
    await change(client, shared_with=[])
    for somebody in (eve, ann):
        assert (await refused(somebody, pictures[0]))[0] == "NOT_FOUND"
    await change(client, visibility=Visibility.ORGANIZATION)
    assert data(await fetched(ann, pictures[0])) == CAT


@pytest.mark.parametrize("gone", ["project", "dataset"])
async def test_what_is_deleted_opens_nothing(client: Client, pictures: list[str], gone: str) -> None:
    ann = person(client, "ann")
    await project(client, pictures[0], version_of(pictures[0]))
    await take(ann)
    assert data(await fetched(ann, pictures[0])) == CAT
    if gone == "project":
        await client.DeleteWorkProject(work_pb.DeleteWorkProjectRequest(name=PROJECT))
    else:
        await client.DeleteDataset(pb.DeleteDatasetRequest(name=NAME))
    assert (await refused(ann, pictures[0]))[0] == "NOT_FOUND"
