"""The base model version of a training: its shape, read from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from argosy.training.v1 import training_pb2

from libs.common.blobs import BlobStore
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from services.training.domain.bases import ADAPTER_CONFIG, CONFIG, Base, adapter_of, architecture_of, fitted
from services.training.domain.models import ModelVersion
from services.training.domain.trainings import Training
from services.training.store.repositories import ModelVersions

if TYPE_CHECKING:
    from services.training.app import App

# A config.json has some ten KiB; one that is far larger is none.
_MOST_BYTES = 1 << 20


async def base_of(name: str, uow: UnitOfWork, blobs: BlobStore) -> Base:
    """What a run would start from.

    Raises:
        DomainError: NOT_FOUND; CONTENT_INVALID, its files tell no shape.
    """
    versions = ModelVersions(uow)
    complete, adapter = await versions.get(name), None
    if complete.is_adapter:
        adapter = adapter_of(await _document(complete, ADAPTER_CONFIG, blobs))
        complete = await versions.get(complete.base_model_version)
    architecture = architecture_of(await _document(complete, CONFIG, blobs))
    return Base(complete.name, architecture, complete.parameter_count, adapter)


async def complete_version(name: str, call: Call[App]) -> str:
    """Digest of the complete model that a run would start from, an adapter's own base where it is one; read in a
    transaction of its own."""
    uow = call.deps.database.unit_of_work(call.org, call.principal.subject, deadline=call.deadline, read_only=True)
    try:
        versions = ModelVersions(uow)
        found = await versions.get(name)
        return (await versions.get(found.base_model_version) if found.is_adapter else found).manifest_digest
    finally:
        await uow.rollback()


async def fit_to_base(training: Training, given: Mapping[str, int], call: Call[App]) -> None:
    """Gives the training's spec the shape of its base; without one nothing changes.

    Args:
        given: numbers of the architecture that the caller wrote.
    """
    if training.base_model_version:
        base = await base_of(training.base_model_version, call.uow, call.deps.blobs)
        training.spec = fitted(training.spec, base, given)


def given_numbers(message: training_pb2.Architecture) -> dict[str, int]:
    """The numbers that a caller wrote."""
    return {field.name: cast("int", value) for field, value in message.ListFields()}


async def _document(version: ModelVersion, path: str, blobs: BlobStore) -> dict[str, Any]:
    file = next((file for file in version.files if file.path == path), None)
    if file is None:
        raise _refused(version, path, "is missing")
    if file.size > _MOST_BYTES:
        raise _refused(version, path, f"has {file.size:,} bytes; {_MOST_BYTES:,} at most")
    try:
        document = json.loads(await blobs.read(file.sha256))
    except (ValueError, RecursionError) as error:
        raise _refused(version, path, "is not JSON") from error
    if not isinstance(document, dict):
        raise _refused(version, path, "is no JSON object")
    return cast("dict[str, Any]", document)


def _refused(version: ModelVersion, path: str, why: str) -> DomainError:
    return DomainError("CONTENT_INVALID", f"{path} of {version.name} {why}.", detail=path)
