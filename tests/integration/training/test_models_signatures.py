"""What of a model version may be changed, and how a change of anything else is found."""

from __future__ import annotations

from typing import Any

from argosy.training.v1 import model_registry_service_pb2 as pb
from argosy.training.v1 import training_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import select, update

from services.training.store import tables
from tests.integration.training.peers import Caller, refusal
from tests.integration.training.versions import app, finished_run, two_versions


async def test_people_may_write_labels_and_a_description_and_nothing_else(served: Caller) -> None:
    version = await finished_run(served)

    async def update(mask: list[str], **fields: Any) -> Any:
        changed = training_pb2.ModelVersion(name=version.name, **fields)
        request = pb.UpdateModelVersionRequest(model_version=changed, update_mask=FieldMask(paths=mask))
        return await served.UpdateModelVersion(request)

    done = await update([], description="For **packages**.", labels={"team": "search"}, manifest_digest="0" * 64)
    assert (done.description, dict(done.labels)) == ("For **packages**.", {"team": "search"})
    assert (done.manifest_digest, done.model_card) == (version.manifest_digest, version.model_card)
    for field in ("manifest_digest", "model_card", "files", "stage", "state", "signature"):
        assert (await refusal(update([field]))).reason == "INVALID_FIELD"
    assert (await refusal(update([], description="x", etag=version.etag))).reason == "ETAG_MISMATCH"


async def test_a_flipped_byte_is_found(served: Caller) -> None:
    version = await finished_run(served)
    request = pb.VerifyModelVersionRequest(name=version.name)
    sound = await served.VerifyModelVersion(request)
    assert (sound.intact, list(sound.problems), sound.bytes_read) == (True, [], len(b"weights"))
    assert sound.signature == version.signature
    store = app(served).blobs
    digest = version.files[0].sha256
    path = next((store._folder._path("blobs") / digest[:2]).glob(f"{digest}*"))
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    broken = await served.VerifyModelVersion(request)
    assert not broken.intact
    assert list(broken.problems) == ["model.safetensors: its bytes are not those that it was made with"]
    path.unlink()
    assert list((await served.VerifyModelVersion(request)).problems) == ["model.safetensors: it is missing"]


async def test_a_forged_row_is_found(served: Caller) -> None:
    version = await finished_run(served)
    table = tables.model_versions
    columns = (table.c.manifest_digest, table.c.files, table.c.signature)
    async with app(served).database.system() as uow:
        sound = dict((await (await uow.connection()).execute(select(*columns))).mappings().one())
    signature = sound["signature"]
    for forged, problem in (
        ({"manifest_digest": "0" * 64}, "does not fit"),
        ({"files": []}, "list of files"),
        ({"signature": None}, "no signature"),
        ({"signature": {**signature, "key_id": "mine"}}, "none of the platform's"),
        ({"signature": {**signature, "value": "AAAA"}}, "does not fit"),
        ({"signature": {**signature, "value": "no base64!"}}, "does not fit"),
    ):
        async with app(served).database.system() as uow:
            await (await uow.connection()).execute(update(table).values(**{**sound, **forged}))
        found = await served.VerifyModelVersion(pb.VerifyModelVersionRequest(name=version.name))
        assert not found.intact
        assert problem in " ".join(found.problems)


async def test_a_signature_of_one_version_does_not_fit_another(served: Caller) -> None:
    first, second = await two_versions(served)
    async with app(served).database.system() as uow:
        await (await uow.connection()).exec_driver_sql(
            "UPDATE model_versions v SET signature = o.signature FROM model_versions o WHERE o.name <> v.name"
        )
    for name in (first, second):
        assert not (await served.VerifyModelVersion(pb.VerifyModelVersionRequest(name=name))).intact
