"""What is known of a model together, and what is done with its versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from argosy.training.v1 import model_registry_service_pb2 as pb
from argosy.training.v1 import training_pb2

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.tasks import store as tasks
from services.training.clients.model_files import problems
from services.training.domain.models import Deployed, ModelProject, ModelVersion
from services.training.domain.moving import move_by_hand
from services.training.handlers.messages import (
    alias_message,
    project_message,
    run_message,
    signature_message,
    transition_message,
    version_message,
)
from services.training.store.announcements import emit_moved
from services.training.store.registry import ModelAliases, ModelDeployments
from services.training.store.repositories import ModelProjects, ModelVersions, TrainingRuns

if TYPE_CHECKING:
    from services.training.app import App

_MUTABLE = frozenset({"labels", "description"})
# What the view shows of lists that have pages of their own.
_SHOWN = 20


async def get_model(request: pb.GetModelRequest, call: Call[App]) -> pb.Model:
    project = await ModelProjects(call.uow).get(request.name)
    version = await _viewed(project, request.version, call)
    view = pb.Model(model_project=project_message(project))
    runs = TrainingRuns(call.uow)
    if version is None:
        newest, _ = await runs.list(None, 1, filters=[runs.table.c.model_project == project.name])
        run = newest[0] if newest else None
    else:
        await _show_version(view, project, version, call)
        run = await runs.find(version.training_run, deleted=True) if version.training_run else None
    if run is not None:
        view.training_run.CopyFrom(run_message(run))
        view.training_task.CopyFrom((await tasks.get(call.uow, run.task)).to_proto())
    return view


async def _viewed(project: ModelProject, asked: str, call: Call[App]) -> ModelVersion | None:
    versions = ModelVersions(call.uow)
    if asked.startswith("@"):
        alias = await ModelAliases(call.uow).get(f"{project.name}/aliases/{asked[1:]}")
        return await versions.get(alias.model_version)
    if asked:
        return await versions.get(f"{project.name}/versions/{asked}")
    live = await versions.find(project.live_version) if project.live_version else None
    return live or await versions.newest(project.name)


async def _show_version(view: pb.Model, project: ModelProject, version: ModelVersion, call: Call[App]) -> None:
    view.model_version.CopyFrom(version_message(version))
    deployed, _ = await ModelDeployments(call.uow).list(project.name, _SHOWN, version=version.name)
    view.deployments.extend(_deployment_message(each) for each in deployed)
    aliases = await ModelAliases(call.uow).of_version(project.name, version.name)
    view.aliases.extend(alias_message(alias) for alias in aliases)
    moves = await ModelVersions(call.uow).newest_transitions(version.name, _SHOWN)
    view.transitions.extend(transition_message(move) for move in moves)


async def update_model_version(request: pb.UpdateModelVersionRequest, call: Call[App]) -> training_pb2.ModelVersion:
    given, repository = request.model_version, ModelVersions(call.uow)
    version = await repository.get(given.name)
    version.require_etag(given.etag)
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        setattr(version, field, dict(given.labels) if field == "labels" else getattr(given, field))
    version.update_time = call.clock.now()
    await repository.save(version)
    call.uow.emit("training.model_version.updated", version)
    return version_message(version)


async def transition_model_version(
    request: pb.TransitionModelVersionRequest, call: Call[App]
) -> training_pb2.ModelVersion:
    repository = ModelVersions(call.uow)
    # Whoever moves a version locks the project first, so that its life-cycle does not change meanwhile.
    project = await ModelProjects(call.uow).get(request.name.rpartition("/versions/")[0], deleted=True, for_update=True)
    version = await repository.get(request.name, for_update=True)
    version.require_etag(request.etag)
    # What went live before deployments were kept is known to the project alone.
    live = project.live_version == version.name or await ModelDeployments(call.uow).live(version.name)
    principal, now = call.principal, call.clock.now()
    move_by_hand(
        version, project.life_cycle, request.stage, principal.subject, principal.role, now, request.reason, live
    )
    moved = list(version.new_transitions)
    await repository.save(version)
    emit_moved(call.uow, version, moved)
    return version_message(version)


async def verify_model_version(request: pb.VerifyModelVersionRequest, call: Call[App]) -> pb.VerifyModelVersionResponse:
    version = await ModelVersions(call.uow).get(request.name)
    # Reading a model takes minutes; the connection is for others meanwhile.
    await call.uow.rollback()
    signer = call.deps.signer
    fault = signer.fault(version)
    found, read = await problems(call.deps.blobs, version)
    answer = pb.VerifyModelVersionResponse(
        problems=[*([fault] if fault else []), *found], manifest_digest=version.manifest_digest, bytes_read=read
    )
    answer.intact = not answer.problems
    if version.signature is not None:
        answer.signature.CopyFrom(signature_message(version.signature))
        answer.public_key = signer.public_key(version.signature.key_id)
    return answer


async def list_model_deployments(
    request: pb.ListModelDeploymentsRequest, call: Call[App]
) -> pb.ListModelDeploymentsResponse:
    project = await ModelProjects(call.uow).get(request.parent, deleted=True)
    at = _moment(request) if request.HasField("at") else None
    found, position = await ModelDeployments(call.uow).list(
        project.name, page_size(request.page_size), PageToken.decode(request), at=at
    )
    return pb.ListModelDeploymentsResponse(
        deployments=[_deployment_message(each) for each in found], next_page_token=PageToken.encode(request, position)
    )


def _moment(request: pb.ListModelDeploymentsRequest) -> datetime:
    try:
        return request.at.ToDatetime(UTC)
    except ValueError:
        raise DomainError("INVALID_FIELD", "at: is no moment", field="at") from None


def _deployment_message(deployed: Deployed) -> pb.ModelDeployment:
    message = pb.ModelDeployment(
        deployment=deployed.deployment,
        model_version=deployed.model_version,
        live_time=timestamp(deployed.live_time),
    )
    if deployed.stop_time is not None:
        message.stop_time.CopyFrom(timestamp(deployed.stop_time))
    return message
