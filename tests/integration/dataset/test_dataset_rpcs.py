"""Datasets, versions and uploads as callers see them, without long work."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2
from argosy.dataset.v1 import catalogue_pb2, catalogue_service_pb2, dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from dataset_client import Client, append, refusal
from google.protobuf.field_mask_pb2 import FieldMask

from libs.common.blobs import BlobStore, manifest_digests
from libs.common.clock import ManualClock
from libs.common.domain import DomainError, Parent, Secrecy
from libs.common.ids import uuid7
from services.dataset.domain.exports import KEPT_TIME, Export
from services.dataset.domain.uploads import OPEN_TIME
from services.dataset.domain.versions import Content, new_version
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save
from services.dataset.engines.writing import VersionWriter
from services.dataset.jobs.sweep import sweep
from services.dataset.store.repositories import Datasets, DatasetVersions, Exports

NAME = "orgs/acme/datasets/docs"


async def publish(
    client: Client, rows: list[dict[str, object]], dataset_name: str = NAME
) -> dataset_pb2.DatasetVersion:
    """Makes a version without a task, as `jobs` does."""
    app = client.app
    blobs = StoreBlobs(app.blobs)
    writer = VersionWriter(blobs)
    for number, row in enumerate(rows):
        writer.add(row, "file.jsonl", number)
    saved = save(writer.finish(), blobs)
    content = Content(
        saved.manifest_digest, saved.content_digest, saved.row_count, saved.byte_count, saved.columns, {"rows_in": 1}
    )
    async with app.database.system() as uow:
        dataset = await Datasets(uow).get(dataset_name, for_update=True)
        now = client.service.clock.now()
        version = new_version(dataset, content, uid=uuid7(), now=now, creator="users/alice", lineage=[Parent("x")])
        await DatasetVersions(uow).insert(version)
        await Datasets(uow).save(dataset)
    return await client.GetDatasetVersion(pb.GetDatasetVersionRequest(name=version.name))


async def test_a_dataset_from_its_creation_to_its_return(client: Client) -> None:
    made = await client.dataset("docs", display_name="Docs", labels={"team": "a"}, source="the web")
    assert (made.name, made.creator, made.secrecy) == (NAME, "users/alice", Secrecy.INTERNAL)
    assert (made.type, made.visibility) == (dataset_pb2.DATASET_TYPE_TEXT, dataset_pb2.VISIBILITY_ORGANIZATION)
    assert (await refusal(client.dataset("docs"))).reason == "ALREADY_EXISTS"

    change = dataset_pb2.Dataset(
        name=NAME, etag=made.etag, description="new", labels={"team": "b"}, secrecy="SECRECY_CONFIDENTIAL"
    )
    changed = await client.UpdateDataset(pb.UpdateDatasetRequest(dataset=change))
    assert (changed.description, dict(changed.labels), changed.display_name) == ("new", {"team": "b"}, "Docs")
    assert (await refusal(client.UpdateDataset(pb.UpdateDatasetRequest(dataset=change)))).reason == "ETAG_MISMATCH"
    lower = pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME, secrecy="SECRECY_INTERNAL"))
    error = await refusal(client.UpdateDataset(lower))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "dataset.secrecy")
    mask = FieldMask(paths=["creator"])
    wrong = pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME), update_mask=mask)
    assert (await refusal(client.UpdateDataset(wrong))).reason == "INVALID_FIELD"

    await client.DeleteDataset(pb.DeleteDatasetRequest(name=NAME))
    assert (await refusal(client.GetDataset(pb.GetDatasetRequest(name=NAME)))).reason == "NOT_FOUND"
    assert not (await client.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme"))).datasets
    deleted = await client.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme", show_deleted=True))
    assert [dataset.name for dataset in deleted.datasets] == [NAME]
    back = await client.UndeleteDataset(pb.UndeleteDatasetRequest(name=NAME))
    assert not back.HasField("delete_time")
    assert (await refusal(client.UndeleteDataset(pb.UndeleteDatasetRequest(name=NAME)))).reason == "STATE_CONFLICT"


async def test_the_same_request_id_makes_one_dataset(client: Client) -> None:
    request = pb.CreateDatasetRequest(parent="orgs/acme", dataset=dataset_pb2.Dataset(), request_id="one")
    assert (await client.CreateDataset(request)).name == (await client.CreateDataset(request)).name
    request.dataset.description = "another"
    assert (await refusal(client.CreateDataset(request))).reason == "REQUEST_ID_REUSED"


async def test_another_organization_sees_nothing(client: Client) -> None:
    await client.dataset("docs")
    version = await publish(client, [{"text": "a"}])
    upload = await client.upload(b"x")
    stranger = client.other(org="umbrella", subject="users/bob", role=options_pb2.ROLE_ADMIN)
    calls = [
        stranger.GetDataset(pb.GetDatasetRequest(name=NAME)),
        stranger.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme")),
        stranger.DeleteDataset(pb.DeleteDatasetRequest(name=NAME)),
        stranger.GetDatasetVersion(pb.GetDatasetVersionRequest(name=version.name)),
        stranger.PreviewRows(pb.PreviewRowsRequest(parent=version.name)),
        stranger.CleanVersion(pb.CleanVersionRequest(name=version.name)),
        stranger.GetUpload(pb.GetUploadRequest(name=upload.name)),
    ]
    for call in calls:
        assert (await refusal(call)).reason == "NOT_FOUND"
    none = f"{NAME}/versions/v9"
    errors = [
        await refusal(stranger.GetDatasetVersion(pb.GetDatasetVersionRequest(name=name)))
        for name in (version.name, none)
    ]
    assert errors[0].message.replace(version.name, none) == errors[1].message
    # A foreign name in any other field is caught by the repository.
    await stranger.CreateDataset(
        pb.CreateDatasetRequest(parent="orgs/umbrella", dataset_id="own", dataset=dataset_pb2.Dataset())
    )
    own = "orgs/umbrella/datasets/own"
    theft = stranger.ImportVersion(pb.ImportVersionRequest(parent=own, upload=upload.name))
    assert (await refusal(theft)).reason == "NOT_FOUND"
    theft = stranger.RollBackDataset(pb.RollBackDatasetRequest(name=own, version=version.name))
    assert (await refusal(theft)).reason == "NOT_FOUND"
    await stranger.close()


async def test_a_private_dataset_is_its_creators_and_the_administrators(client: Client) -> None:
    await client.dataset("docs", visibility=dataset_pb2.VISIBILITY_USER)
    version = await publish(client, [{"text": "a"}])
    colleague = client.other(subject="users/bob", role=options_pb2.ROLE_APPROVER)
    admin = client.other(subject="users/root", role=options_pb2.ROLE_ADMIN)
    assert (await refusal(colleague.GetDataset(pb.GetDatasetRequest(name=NAME)))).reason == "NOT_FOUND"
    request = pb.GetDatasetVersionRequest(name=version.name)
    assert (await refusal(colleague.GetDatasetVersion(request))).reason == "NOT_FOUND"
    listing = pb.ListDatasetsRequest(parent="orgs/acme")
    assert [len((await who.ListDatasets(listing)).datasets) for who in (client, colleague, admin)] == [1, 0, 1]
    assert (await admin.GetDataset(pb.GetDatasetRequest(name=NAME))).name == NAME
    for other in (colleague, admin):
        await other.close()


async def test_a_public_dataset_is_read_by_others_and_changed_by_none_of_them(client: Client) -> None:
    await client.dataset("docs", visibility=dataset_pb2.VISIBILITY_PUBLIC)
    version = await publish(client, [{"text": "a"}])
    stranger = client.other(org="umbrella", subject="users/alice", role=options_pb2.ROLE_ADMIN)
    assert (await stranger.GetDataset(pb.GetDatasetRequest(name=NAME))).name == NAME
    versions = await stranger.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=NAME))
    assert [found.name for found in versions.dataset_versions] == [version.name]
    assert (await stranger.PreviewRows(pb.PreviewRowsRequest(parent=version.name))).rows
    assert await first_of(stranger.ReadVersion(pb.ReadVersionRequest(name=version.name)))
    for call in (
        stranger.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme")),
        stranger.UpdateDataset(pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME, description="mine"))),
        stranger.TagDatasetVersion(pb.TagDatasetVersionRequest(name=version.name, add_tags=["mine"])),
        stranger.CleanVersion(pb.CleanVersionRequest(name=version.name)),
        stranger.DeleteDataset(pb.DeleteDatasetRequest(name=NAME)),
    ):
        assert (await refusal(call)).reason == "NOT_FOUND"
    await client.DeleteDataset(pb.DeleteDatasetRequest(name=NAME))
    assert (await refusal(stranger.GetDataset(pb.GetDatasetRequest(name=NAME)))).reason == "NOT_FOUND"
    await stranger.close()


async def test_a_share_lets_read_and_not_write(client: Client) -> None:
    await client.dataset("docs", visibility=dataset_pb2.VISIBILITY_USER, shared_with=["orgs/acme/users/bob"])
    version = await publish(client, [{"text": "a"}])
    bob, eve = (client.other(subject=f"users/{name}", role=options_pb2.ROLE_EDITOR) for name in ("bob", "eve"))
    listing = pb.ListDatasetsRequest(parent="orgs/acme")
    assert [len((await who.ListDatasets(listing)).datasets) for who in (bob, eve)] == [1, 0]
    assert (await bob.PreviewRows(pb.PreviewRowsRequest(parent=version.name))).rows
    for write in (
        bob.CleanVersion(pb.CleanVersionRequest(name=version.name)),
        bob.AugmentVersion(pb.AugmentVersionRequest(name=version.name, recipe="steps: [misspell]")),
        bob.TagDatasetVersion(pb.TagDatasetVersionRequest(name=version.name, add_tags=["mine"])),
        bob.UpdateDataset(pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME, description="mine"))),
        bob.DeleteDataset(pb.DeleteDatasetRequest(name=NAME)),
    ):
        assert (await refusal(write)).reason == "ROLE_MISSING"
    assert (await refusal(eve.PreviewRows(pb.PreviewRowsRequest(parent=version.name)))).reason == "NOT_FOUND"
    gone = pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME), update_mask=FieldMask(paths=["shared_with"]))
    await client.UpdateDataset(gone)
    assert (await refusal(bob.GetDataset(pb.GetDatasetRequest(name=NAME)))).reason == "NOT_FOUND"
    for other in (bob, eve):
        await other.close()


async def test_datasets_are_found_by_what_they_are(client: Client) -> None:
    await client.dataset("news", display_name="Daily NEWS", labels={"team": "a"}, project_space="press")
    await client.dataset("photos", type=dataset_pb2.DATASET_TYPE_IMAGE, description="100% of the news photos, 猫")
    searches: list[tuple[dict[str, Any], set[str]]] = [
        ({"search": "news"}, {"news", "photos"}),
        ({"search": "news daily"}, {"news"}),
        ({"search": "猫"}, {"photos"}),
        ({"search": "100%"}, {"photos"}),
        ({"search": "1_0"}, set()),
        ({"search": "ne\\"}, set()),
        ({"type": dataset_pb2.DATASET_TYPE_IMAGE}, {"photos"}),
        ({"labels": ["team=a"]}, {"news"}),
        ({"labels": ["team=b"]}, set()),
        ({"project_space": "press", "search": "daily"}, {"news"}),
    ]
    for wanted, names in searches:
        found = await client.ListDatasets(pb.ListDatasetsRequest(parent="orgs/acme", **wanted))
        assert {dataset.name.rsplit("/", 1)[1] for dataset in found.datasets} == names, wanted


async def test_a_list_goes_on_behind_a_dataset(client: Client) -> None:
    for number in range(4):
        await client.dataset(f"d{number}", labels={"team": "ab"[number % 2]})

    async def behind(name: str, who: Client = client, **fields: Any) -> list[str]:
        after = f"orgs/acme/datasets/{name}"
        request = pb.ListDatasetsRequest(parent="orgs/acme", after=after, page_size=2, **fields)
        found: list[str] = []
        while True:
            page = await who.ListDatasets(request)
            found += [dataset.name.rsplit("/", 1)[1] for dataset in page.datasets]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    assert await behind("d3") == ["d2", "d1", "d0"]
    assert await behind("d0", oldest_first=True) == ["d1", "d2", "d3"]
    assert await behind("d2", labels=["team=a"]) == ["d0"]
    # One that was deleted meanwhile still has its place.
    await client.DeleteDataset(pb.DeleteDatasetRequest(name="orgs/acme/datasets/d1"))
    assert await behind("d1") == ["d0"]
    assert (await refusal(behind("nothing"))).reason == "NOT_FOUND"
    await client.dataset("mine", visibility=dataset_pb2.VISIBILITY_USER)
    colleague = client.other(subject="users/bob", role=options_pb2.ROLE_EDITOR)
    assert (await refusal(behind("mine", colleague))).reason == "NOT_FOUND"
    await colleague.close()


async def test_a_data_product_lets_others_read_its_version_and_no_other(client: Client) -> None:
    await client.dataset("docs", visibility=dataset_pb2.VISIBILITY_USER)
    first, second = await publish(client, [{"text": "a"}]), await publish(client, [{"text": "b"}])
    offer = catalogue_pb2.DataProduct(
        dataset_version=first.name, display_name="Docs", tags=["clean"], visibility=dataset_pb2.VISIBILITY_PUBLIC
    )
    create = catalogue_service_pb2.CreateDataProductRequest(
        parent="orgs/acme", data_product_id="docs", data_product=offer
    )
    bob = client.other(subject="users/bob", role=options_pb2.ROLE_EDITOR)
    stranger = client.other(org="umbrella", subject="users/alice", role=options_pb2.ROLE_VIEWER)
    assert (await refusal(bob.CreateDataProduct(create))).reason == "NOT_FOUND"
    assert (await refusal(stranger.PreviewRows(pb.PreviewRowsRequest(parent=first.name)))).reason == "NOT_FOUND"
    made = await client.CreateDataProduct(create)
    assert (made.row_count, [parent.name for parent in made.lineage.parents]) == (1, [first.name])
    everybody = catalogue_service_pb2.ListDataProductsRequest(parent="orgs/umbrella", public=True, search="CLEAN docs")
    assert [one.name for one in (await stranger.ListDataProducts(everybody)).data_products] == [made.name]
    own = catalogue_service_pb2.ListDataProductsRequest(parent="orgs/umbrella")
    assert not (await stranger.ListDataProducts(own)).data_products
    for reader in (bob, stranger):
        assert (await reader.GetDataProduct(catalogue_service_pb2.GetDataProductRequest(name=made.name))).name
        assert (await reader.PreviewRows(pb.PreviewRowsRequest(parent=first.name))).rows
        assert (await refusal(reader.PreviewRows(pb.PreviewRowsRequest(parent=second.name)))).reason == "NOT_FOUND"
    mine = catalogue_service_pb2.UpdateDataProductRequest(data_product=catalogue_pb2.DataProduct(name=made.name))
    assert (await refusal(bob.UpdateDataProduct(mine))).reason == "NOT_FOUND"
    # Above INTERNAL nothing is for everybody, neither from the beginning nor later.
    raised = dataset_pb2.Dataset(name=NAME, secrecy="SECRECY_SECRET")
    await client.UpdateDataset(pb.UpdateDatasetRequest(dataset=raised))
    assert (await bob.PreviewRows(pb.PreviewRowsRequest(parent=first.name))).rows
    assert (await refusal(stranger.PreviewRows(pb.PreviewRowsRequest(parent=first.name)))).reason == "NOT_FOUND"
    earlier = catalogue_pb2.DataProduct(name=made.name, dataset_version=second.name)
    again = catalogue_service_pb2.UpdateDataProductRequest(data_product=earlier)
    assert (await refusal(client.UpdateDataProduct(again))).metadata["state"] == "SECRET"
    third = await publish(client, [{"text": "c"}])
    newer = catalogue_pb2.DataProduct(name=made.name, dataset_version=third.name)
    error = await refusal(client.UpdateDataProduct(catalogue_service_pb2.UpdateDataProductRequest(data_product=newer)))
    assert (error.reason, error.metadata["state"]) == ("STATE_CONFLICT", "SECRET")
    await client.DeleteDataProduct(catalogue_service_pb2.DeleteDataProductRequest(name=made.name))
    assert (await refusal(bob.PreviewRows(pb.PreviewRowsRequest(parent=first.name)))).reason == "NOT_FOUND"
    for other in (bob, stranger):
        await other.close()


async def test_tags_are_unique_and_move(client: Client) -> None:
    await client.dataset("docs")
    first, second = await publish(client, [{"text": "a"}]), await publish(client, [{"text": "b"}])
    await client.TagDatasetVersion(pb.TagDatasetVersionRequest(name=first.name, add_tags=["golden", "q4"]))
    tagged = await client.TagDatasetVersion(pb.TagDatasetVersionRequest(name=second.name, add_tags=["golden"]))
    assert list(tagged.tags) == ["golden"]
    found = await client.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=NAME))
    assert {version.name: list(version.tags) for version in found.dataset_versions} == {
        first.name: ["q4"],
        second.name: ["golden"],
    }
    many = pb.TagDatasetVersionRequest(name=second.name, add_tags=[f"t{number}" for number in range(32)])
    assert (await refusal(client.TagDatasetVersion(many))).reason == "INVALID_FIELD"
    gone = pb.TagDatasetVersionRequest(name=second.name, remove_tags=["golden"], etag=tagged.etag)
    assert not (await client.TagDatasetVersion(gone)).tags


async def test_a_locked_dataset_gets_no_version(client: Client) -> None:
    await client.dataset("docs")
    version = await publish(client, [{"text": "a"}])
    locked = dataset_pb2.Dataset(name=NAME, locked=True)
    await client.UpdateDataset(pb.UpdateDatasetRequest(dataset=locked))
    upload = await client.upload(b'{"text": "a"}\n')
    for call in (
        client.ImportVersion(pb.ImportVersionRequest(parent=NAME, upload=upload.name)),
        client.CleanVersion(pb.CleanVersionRequest(name=version.name)),
        client.RollBackDataset(pb.RollBackDatasetRequest(name=NAME, version=version.name)),
    ):
        assert (await refusal(call)).reason == "STATE_CONFLICT"
    free = pb.UpdateDatasetRequest(dataset=dataset_pb2.Dataset(name=NAME), update_mask=FieldMask(paths=["locked"]))
    assert not (await client.UpdateDataset(free)).locked
    assert (await client.RollBackDataset(pb.RollBackDatasetRequest(name=NAME, version=version.name))).row_count == 1


async def test_rows_are_previewed_in_pages(client: Client) -> None:
    await client.dataset("docs")
    rows: list[dict[str, object]]
    rows = [{"text": "x" * 30_000 if number == 2 else f"row {number}", "n": number, "deep": [1]} for number in range(5)]
    version = await publish(client, rows)
    request = pb.PreviewRowsRequest(parent=version.name, page_size=2)
    page = await client.PreviewRows(request)
    assert [dict(row.fields)["n"] for row in page.rows] == [0, 1]
    assert (page.rows[1].source, page.rows[1].position) == ("file.jsonl", 1)
    request.page_token = page.next_page_token
    page = await client.PreviewRows(request)
    assert [len(dict(row.fields)["text"]) for row in page.rows] == [20_001, 5]
    request.page_token = "bm90IG91cnM"
    assert (await refusal(client.PreviewRows(request))).reason == "PAGE_TOKEN_INVALID"


async def test_reading_resumes_and_shards(client: Client) -> None:
    await client.dataset("docs")
    version = await publish(client, [{"text": f"row {number}", "n": number} for number in range(5000)])

    async def ids(**fields: Any) -> list[str]:
        found: list[str] = []
        async for answer in client.ReadVersion(pb.ReadVersionRequest(name=version.name, **fields)):
            found += [answer.cursor]
        return found

    whole = await ids()
    assert whole == ["2048", "4096", "5000"]
    assert await ids(cursor=whole[0]) == whole[1:]
    assert await ids(cursor="5000") == []
    assert [await ids(shard=number, shard_count=3) for number in range(3)] == [["1666"], ["3333"], ["5000"]]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cursor": "9999"}, "cursor"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "1", "shard": 1, "shard_count": 2}, "cursor"),
        ({"shard": 2, "shard_count": 2}, "shard"),
        ({"projection": ["nope"]}, "projection"),
    ]
    for fields, field in wrong:
        error = await refusal(first_of(client.ReadVersion(pb.ReadVersionRequest(name=version.name, **fields))))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)


async def first_of(stream: Any) -> Any:
    async for answer in stream:
        return answer
    return None


async def test_diff_is_within_one_dataset(client: Client) -> None:
    await client.dataset("docs")
    await client.dataset("other")
    first = await publish(client, [{"text": "a"}, {"text": "b"}])
    second = await publish(client, [{"text": "b"}, {"text": "c"}])
    foreign = await publish(client, [{"text": "b"}], "orgs/acme/datasets/other")
    diff = await client.DiffDatasetVersions(pb.DiffDatasetVersionsRequest(name=second.name, base=first.name))
    assert (diff.added, diff.removed, diff.common) == (1, 1, 1)
    assert [dict(row.fields)["text"] for row in (*diff.added_examples, *diff.removed_examples)] == ["c", "a"]
    wrong = pb.DiffDatasetVersionsRequest(name=second.name, base=foreign.name)
    assert (await refusal(client.DiffDatasetVersions(wrong))).metadata["field"] == "base"


async def test_a_broken_upload_goes_on_where_it_stood(client: Client) -> None:
    data = bytes(range(256)) * 100
    upload = await client.CreateUpload(
        pb.CreateUploadRequest(parent="orgs/acme", file_name="rows.jsonl", size=len(data))
    )
    await client.AppendUpload(append(upload.name, data, 0, 10_000))
    ahead = await refusal(client.AppendUpload(append(upload.name, data, 20_000, 10_000)))
    assert (ahead.reason, ahead.metadata["offset"]) == ("OFFSET_MISMATCH", "10000")
    damaged = append(upload.name, data, 10_000, 10_000)
    damaged.data = b"other"
    assert (await refusal(client.AppendUpload(damaged))).reason == "DIGEST_MISMATCH"
    assert (await refusal(client.CommitUpload(pb.CommitUploadRequest(name=upload.name)))).reason == "INVALID_FIELD"

    again = await client.AppendUpload(append(upload.name, data, 0, 10_000))
    assert again.offset == 10_000
    assert (await refusal(client.AppendUpload(append(upload.name, data, 0, 9_000)))).reason == "OFFSET_MISMATCH"
    stands = (await client.GetUpload(pb.GetUploadRequest(name=upload.name))).offset
    for offset in range(stands, len(data), 10_000):
        await client.AppendUpload(append(upload.name, data, offset, 10_000))
    beyond = append(upload.name, b"x" * (len(data) + 1), len(data), 1)
    assert (await refusal(client.AppendUpload(beyond))).reason == "INVALID_FIELD"
    wrong = pb.CommitUploadRequest(name=upload.name, sha256="0" * 64)
    assert (await refusal(client.CommitUpload(wrong))).reason == "DIGEST_MISMATCH"

    digest = hashlib.sha256(data).hexdigest()
    done = await client.CommitUpload(pb.CommitUploadRequest(name=upload.name, sha256=digest))
    assert (done.state, done.digest, done.offset) == (dataset_pb2.Upload.STATE_COMMITTED, digest, len(data))
    assert (await client.CommitUpload(pb.CommitUploadRequest(name=upload.name))).digest == digest
    assert (await refusal(client.AppendUpload(beyond))).reason == "STATE_CONFLICT"


async def test_training_reads_a_committed_upload_by_grant(client: Client) -> None:
    data = bytes(range(256)) * 10
    upload = await client.upload(data, "model.zip", part=1000)
    begun = await client.CreateUpload(pb.CreateUploadRequest(parent="orgs/acme", file_name="model.zip"))
    training = client.as_peer("training")
    request = pb.GrantUploadReadRequest(name=upload.name, holder="orgs/acme/training/tasks/t", ttl_seconds=60)
    granted = await training.GrantUploadRead(request)
    assert (granted.file_name, granted.size) == ("model.zip", len(data))
    store = BlobStore.from_grant(granted.grant)
    pieces = manifest_digests(store.load_manifest_sync(granted.manifest_digest))
    assert b"".join(store.read_sync(piece) for piece in pieces) == data
    open_one = pb.GrantUploadReadRequest(name=begun.name, holder="t")
    assert (await refusal(training.GrantUploadRead(open_one))).reason == "STATE_CONFLICT"
    assert (await refusal(client.GrantUploadRead(request))).reason == "PEER_NOT_ALLOWED"
    await training.close()


async def test_uploads_expire(client: Client) -> None:
    await client.dataset("docs")
    committed = await client.upload(b'{"a": 1}\n')
    left = await client.CreateUpload(pb.CreateUploadRequest(parent="orgs/acme", file_name="a.csv"))
    await client.AppendUpload(append(left.name, b"some bytes", 0, 10))
    app, later = client.app, ManualClock(client.service.clock.now() + OPEN_TIME + timedelta(seconds=1))
    assert (await sweep(app.database, app.blobs, later))[0] == 1
    assert (await refusal(client.GetUpload(pb.GetUploadRequest(name=left.name)))).reason == "NOT_FOUND"
    assert (await client.GetUpload(pb.GetUploadRequest(name=committed.name))).digest == committed.digest


async def test_cleaning_describes_itself(client: Client) -> None:
    catalogue = await client.DescribeCleaning(pb.DescribeCleaningRequest())
    assert [recipe.name for recipe in catalogue.recipes] == ["general", "web-en", "web-zh"]
    operators = {operator.name: operator for operator in catalogue.operators}
    assert "arXiv 2112.11446" in operators["gopher_quality"].source
    assert operators["near_duplicates"].compares_rows
    defaults = {parameter.name: parameter.default for parameter in operators["length"].parameters}
    assert defaults["min_chars"].number_value == 20
    kinds = {parameter.name: parameter.kind for parameter in operators["python"].parameters}
    assert (kinds["function"], kinds["on_error"]) == ("function", "choice")
    await client.dataset("docs")
    version = await publish(client, [{"text": "a"}])
    for recipe in catalogue.recipes:
        request = pb.CleanVersionRequest(name=version.name, recipe=recipe.yaml)
        assert (await client.CleanVersion(request)).state == task_pb2.Task.STATE_QUEUED


async def test_tasks_are_refused_before_they_are_queued(client: Client) -> None:
    await client.dataset("docs")
    version = await publish(client, [{"text": "a"}])
    unfinished = await client.CreateUpload(pb.CreateUploadRequest(parent="orgs/acme", file_name="rows.jsonl"))
    unnamed = await client.upload(b"x", "rows.bin")
    split = {"name": version.name, "train_dataset": NAME, "test_fraction": 0.5}
    for call, reason, field in (
        (client.ImportVersion(pb.ImportVersionRequest(parent=NAME, upload=unfinished.name)), "STATE_CONFLICT", ""),
        (client.ImportVersion(pb.ImportVersionRequest(parent=NAME, upload=unnamed.name)), "INVALID_FIELD", "format"),
        (
            client.CleanVersion(pb.CleanVersionRequest(name=version.name, text_column="body")),
            "INVALID_FIELD",
            "text_column",
        ),
        (client.CleanVersion(pb.CleanVersionRequest(name=version.name, recipe="none")), "INVALID_FIELD", "recipe"),
        (
            client.CleanVersion(pb.CleanVersionRequest(name=version.name, recipe="steps: [{words: {min: 1}}]")),
            "INVALID_FIELD",
            "recipe.steps[0].words.min",
        ),
        (
            client.CleanVersion(
                pb.CleanVersionRequest(name=version.name, recipe="steps: [{expression: {keep: text > 3}}]")
            ),
            "INVALID_FIELD",
            "recipe.steps[0].expression.keep",
        ),
        (
            client.CleanVersion(
                pb.CleanVersionRequest(name=version.name, recipe="steps: [html, {impute: {columns: [n]}}]")
            ),
            "INVALID_FIELD",
            "recipe.steps[1].impute.columns[0]",
        ),
        (
            client.CleanVersion(pb.CleanVersionRequest(name=version.name, sample_rows=-1)),
            "INVALID_FIELD",
            "sample_rows",
        ),
        (client.SplitVersion(pb.SplitVersionRequest(**split, test_dataset=NAME)), "INVALID_FIELD", "test_dataset"),
        (
            client.SplitVersion(pb.SplitVersionRequest(**split, test_dataset="orgs/acme/datasets/none")),
            "NOT_FOUND",
            "",
        ),
    ):
        error = await refusal(call)
        assert (error.reason, error.metadata.get("field", "")) == (reason, field)
    task = await client.CleanVersion(pb.CleanVersionRequest(name=version.name))
    assert (task.state, task.kind, task.target) == (task_pb2.Task.STATE_QUEUED, "dataset.clean", version.name)
    cancelled = await client.CancelTask(task_service_pb2.CancelTaskRequest(name=task.name))
    assert cancelled.cancel_requested


@pytest.mark.parametrize("name", ["orgs/acme/datasets/DOCS", "orgs/acme", "x" * 600, ""])
async def test_bad_names_are_named(client: Client, name: str) -> None:
    error = await refusal(client.GetDataset(pb.GetDatasetRequest(name=name)))
    assert (error.reason, error.violations[0][0]) == ("INVALID_FIELD", "name")


async def test_the_store_keeps_what_versions_name(client: Client) -> None:
    await client.dataset("docs")
    version = await publish(client, [{"text": "a"}])
    app = client.app
    garbage = await app.blobs.put(b"nobody names this")
    later = ManualClock(client.service.clock.now() + timedelta(days=3))
    app.blobs._clock = later
    _, deleted = await sweep(app.database, app.blobs, later)
    assert deleted == 1
    assert (await client.PreviewRows(pb.PreviewRowsRequest(parent=version.name))).rows
    assert garbage.sha256 not in str(list((client.mesh.folder / "blobs").rglob("*")))


async def test_exports_are_refused_before_they_are_queued(client: Client) -> None:
    await client.dataset("docs")
    await client.dataset("secret", visibility=dataset_pb2.VISIBILITY_USER)
    version = await publish(client, [{"text": "a", "n": 1}])
    hidden = await publish(client, [{"text": "b"}], "orgs/acme/datasets/secret")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": "alpaca"}, "format"),
        ({"format": "voc"}, "format"),
        ({"format": "xml"}, "format"),
        ({"format": ""}, "format"),
        ({"format": "parquet", "compression": "gzip"}, "compression"),
        ({"format": "text", "text_column": "body"}, "text_column"),
        ({"format": "jsonl", "split": "test"}, "split"),
        ({"format": "datasets", "split": "no/slash"}, "split"),
    ]
    for fields, field in wrong:
        error = await refusal(client.ExportVersion(pb.ExportVersionRequest(name=version.name, **fields)))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field), fields
    colleague = client.other(subject="users/bob", role=options_pb2.ROLE_VIEWER)
    both = pb.ExportVersionRequest(
        name=version.name, format="datasets", other_splits=[pb.ExportSplit(split="test", version=hidden.name)]
    )
    stranger = client.other(org="umbrella", subject="users/alice", role=options_pb2.ROLE_ADMIN)
    for call in (colleague.ExportVersion(both), stranger.ExportVersion(both)):
        assert (await refusal(call)).reason == "NOT_FOUND"
    # Who may read may export, once for a request id.
    request = pb.ExportVersionRequest(name=version.name, format="jsonl", request_id="one")
    task = await colleague.ExportVersion(request)
    assert (task.kind, task.target) == ("dataset.export", version.name)
    assert (await colleague.ExportVersion(request)).name == task.name
    for other in (colleague, stranger):
        await other.close()


async def exported(client: Client, version: dataset_pb2.DatasetVersion, *others: str) -> tuple[str, bytes]:
    """Makes an export without a task, as `jobs` does; its one file, and its name."""
    app, now = client.app, client.service.clock.now()
    data = bytes(range(256)) * 8192
    blob = await app.blobs.put(data)
    files = [{"path": "docs-v1.jsonl", "size": blob.size, "sha256": blob.sha256}]
    export = Export(
        uid=uuid7(),
        name=f"{version.name}/exports/ex-1",
        create_time=now,
        update_time=now,
        lineage=[Parent(name, "", "exported_from") for name in (version.name, *others)],
        expire_time=now + KEPT_TIME,
        format="jsonl",
        files=files,
        manifest_digest=await app.blobs.commit({"blobs": files}),
    )
    async with app.database.system() as uow:
        await Exports(uow).insert(export)
    return export.name, data


async def test_an_export_is_fetched_in_ranges_by_who_sees_its_versions(client: Client) -> None:
    await client.dataset("docs")
    await client.dataset("secret", visibility=dataset_pb2.VISIBILITY_USER)
    hidden = await publish(client, [{"text": "b"}], "orgs/acme/datasets/secret")
    name, data = await exported(client, await publish(client, [{"text": "a"}]), hidden.name)

    async def fetched(who: Client, **fields: Any) -> bytes:
        request = pb.DownloadVersionExportRequest(name=name, **fields)
        return b"".join([part.data async for part in who.DownloadVersionExport(request)])

    found = await client.GetVersionExport(pb.GetVersionExportRequest(name=name))
    assert hashlib.sha256(data).hexdigest() == found.files[0].sha256
    assert await fetched(client) == await fetched(client, path="docs-v1.jsonl") == data
    assert await fetched(client, offset=1_500_000) == data[1_500_000:]
    assert await fetched(client, offset=70_000, length=100_000) == data[70_000:170_000]
    assert await fetched(client, offset=len(data)) == b""
    for fields, reason in (({"offset": len(data) + 1}, "INVALID_FIELD"), ({"path": "../a"}, "NOT_FOUND")):
        assert (await refusal(fetched(client, **fields))).reason == reason

    # One of the two versions is not for the colleague: neither is the export, in the words of one that is not there.
    colleague = client.other(subject="users/bob", role=options_pb2.ROLE_VIEWER)
    none = f"{name}2"
    errors = [await refusal(colleague.GetVersionExport(pb.GetVersionExportRequest(name=one))) for one in (name, none)]
    assert errors[0].message.replace(name, none) == errors[1].message
    assert (await refusal(fetched(colleague))).reason == "NOT_FOUND"
    await colleague.close()
    await client.DeleteDataset(pb.DeleteDatasetRequest(name="orgs/acme/datasets/secret"))
    assert (await refusal(fetched(client))).reason == "NOT_FOUND"


async def test_exports_expire_and_their_files_with_them(client: Client) -> None:
    await client.dataset("docs")
    name, _ = await exported(client, await publish(client, [{"text": "a"}]))
    app, now = client.app, client.service.clock.now()
    get = pb.GetVersionExportRequest(name=name)
    digest = (await client.GetVersionExport(get)).files[0].sha256
    app.blobs._clock = almost = ManualClock(now + KEPT_TIME - timedelta(hours=1))
    await sweep(app.database, app.blobs, almost)
    assert (await client.GetVersionExport(get)).name == name
    assert (await app.blobs.stat(digest)).size
    app.blobs._clock = later = ManualClock(now + KEPT_TIME + timedelta(seconds=1))
    assert (await sweep(app.database, app.blobs, later))[1] >= 2
    assert (await refusal(client.GetVersionExport(get))).reason == "NOT_FOUND"
    with pytest.raises(DomainError, match="not in the store"):
        await app.blobs.stat(digest)
