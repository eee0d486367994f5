"""Import of models from outside."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from argosy.common.v1 import task_pb2
from argosy.training.v1 import model_registry_service_pb2 as pb

from libs.common.domain import DomainError, inherit_secrecy
from libs.common.rpc.call import Call
from services.training.domain.model_files import IMPORT_KIND
from services.training.store.repositories import ModelProjects, TrainingRuns
from services.training.store.run_artifacts import RunArtifacts

if TYPE_CHECKING:
    from services.training.app import App


async def import_model(request: pb.ImportModelRequest, call: Call[App]) -> task_pb2.Task:
    _require_one_source(request)
    if request.folder:
        _require_open(request.folder, call.deps.settings.open_folders)
    if request.hub.id and not call.deps.settings.model_hub:
        message = "hub: the operator of this platform has turned on no hub (ARGOSY_TRAINING_MODEL_HUB)"
        raise DomainError("INVALID_FIELD", message, field="hub")
    run = await TrainingRuns(call.uow).get(request.run) if request.run else None
    if run is not None and not await RunArtifacts(call.uow, run).list(request.run_path, 1, ""):
        message = f"run_path: {run.name} has no files at {request.run_path!r}"
        raise DomainError("INVALID_FIELD", message, field="run_path")
    for upload in request.uploads:
        await call.deps.datasets.require_committed(upload, call.forward())
    project = await ModelProjects(call.uow).get(request.parent)
    work = {
        "uploads": list(request.uploads),
        "folder": request.folder,
        "hub": {"id": request.hub.id, "revision": request.hub.revision} if request.hub.id else None,
        "run": request.run,
        "run_path": request.run_path,
        "labels": dict(request.labels),
        "description": request.description,
        "secrecy": int(inherit_secrecy(request.secrecy, project.secrecy, *([run.secrecy] if run else []))),
    }
    return await call.deps.tasks.create(
        call.uow, project.org, IMPORT_KIND, project.name, work, call.principal.subject, labels=dict(request.labels)
    )


def _require_one_source(request: pb.ImportModelRequest) -> None:
    given = [bool(request.uploads), bool(request.folder), bool(request.hub.id), bool(request.run)]
    if sum(given) != 1:
        message = "uploads: give either uploads, or a folder, or a hub's model, or a run"
        raise DomainError("INVALID_FIELD", message, field="uploads")
    if len(set(request.uploads)) != len(request.uploads):
        raise DomainError("INVALID_FIELD", "uploads: one of them is named twice", field="uploads")


def _require_open(folder: str, open_folders: list[str]) -> None:
    """By its name alone; where links lead is looked at by the engine, which sees the folder."""
    path = PurePosixPath(folder)
    inside = any(path.is_relative_to(each) for each in open_folders)
    if not path.is_absolute() or ".." in path.parts or not inside:
        message = f"folder: {folder!r} is in none that the operator opened (ARGOSY_TRAINING_MODEL_FOLDERS)"
        raise DomainError("INVALID_FIELD", message, field="folder")
