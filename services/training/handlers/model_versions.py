"""Model versions: their files, states and gates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from argosy.training.v1 import model_service_pb2 as pb
from argosy.training.v1 import training_events_pb2, training_pb2

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.tasks import left_rooms
from services.training.domain.life_cycle import Event
from services.training.domain.models import Gate, decided
from services.training.handlers.messages import transition_message, version_message
from services.training.store.announcements import emit_moved
from services.training.store.registry import ModelAliases, ModelDeployments
from services.training.store.repositories import ModelProjects, ModelVersions

if TYPE_CHECKING:
    from services.training.app import App

_GRANT_SECONDS = 3600


async def get_model_version(request: pb.GetModelVersionRequest, call: Call[App]) -> training_pb2.ModelVersion:
    return version_message(await ModelVersions(call.uow).get(request.name))


async def list_model_versions(request: pb.ListModelVersionsRequest, call: Call[App]) -> pb.ListModelVersionsResponse:
    await ModelProjects(call.uow).get(request.parent)
    found, position = await ModelVersions(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListModelVersionsResponse(
        model_versions=[version_message(version) for version in found],
        next_page_token=PageToken.encode(request, position),
    )


async def delete_model_version(request: pb.DeleteModelVersionRequest, call: Call[App]) -> training_pb2.ModelVersion:
    repository = ModelVersions(call.uow)
    # Locked: no alias may come to stand for it meanwhile.
    version = await repository.get(request.name, for_update=True)
    version.require_etag(request.etag)
    project = await ModelProjects(call.uow).get(version.parent, deleted=True)
    if project.live_version == version.name or await ModelDeployments(call.uow).live(version.name):
        message = f"{version.name} is live; stop its deployment first."
        raise DomainError("IN_USE", message, name=version.name, used_by="a deployment")
    aliases = await ModelAliases(call.uow).of_version(version.parent, version.name)
    if aliases:
        message = f"{version.name} is what {aliases[0].name} stands for; move or delete the alias first."
        raise DomainError("IN_USE", message, name=version.name, used_by=aliases[0].name)
    now = call.clock.now()
    version.archive(call.principal.subject, now)
    await repository.soft_delete(version, now)
    await left_rooms.give_back(call.uow, [version.name])
    call.uow.emit("training.model_version.deleted", version)
    return version_message(version)


async def undelete_model_version(request: pb.UndeleteModelVersionRequest, call: Call[App]) -> training_pb2.ModelVersion:
    repository = ModelVersions(call.uow)
    version = await repository.get(request.name, deleted=True)
    version.require_etag(request.etag)
    now = call.clock.now()
    if version.delete_time is not None:
        project = await ModelProjects(call.uow).get(version.parent, deleted=True)
        version.restore(project.life_cycle, call.principal.subject, now)
    await repository.undelete(version, now)
    if call.deps.quota is not None:
        await left_rooms.keep(call.uow, version.org, version.creator, version.name, version.size)
    call.uow.emit("training.model_version.undeleted", version)
    return version_message(version)


async def record_gate(request: pb.RecordGateRequest, call: Call[App]) -> training_pb2.ModelVersion:
    repository = ModelVersions(call.uow)
    # Whoever moves a version locks the project first, so that its life-cycle does not change meanwhile.
    project = await ModelProjects(call.uow).get(request.name.rpartition("/versions/")[0], deleted=True, for_update=True)
    version = await repository.get(request.name, for_update=True)
    now = call.clock.now()
    gate = decided(_gate(request.gate, call), now)
    version.require_matching(gate)
    if not await repository.keep_decision(version, gate):
        return version_message(version)
    actor = f"services/{call.principal.peer}"
    version.decide(gate, project.life_cycle, actor, now)
    if await ModelDeployments(call.uow).live(version.name):
        version.happen(Event.WENT_LIVE, project.life_cycle, actor, now, "a deployment answers with it")
    moved = list(version.new_transitions)
    await repository.save(version)
    emit_moved(call.uow, version, moved)
    payload = training_events_pb2.ModelVersionGated(
        version=version.name, gate=gate.gate, open=gate.open, evaluation=gate.evaluation
    )
    call.uow.emit("training.model_version.gated", version, payload)
    return version_message(version)


async def list_model_version_transitions(
    request: pb.ListModelVersionTransitionsRequest, call: Call[App]
) -> pb.ListModelVersionTransitionsResponse:
    repository = ModelVersions(call.uow)
    version = await repository.get(request.parent, deleted=True)
    found, position = await repository.transitions(
        version.name, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListModelVersionTransitionsResponse(
        transitions=[transition_message(transition) for transition in found],
        next_page_token=PageToken.encode(request, position),
    )


async def grant_model_read(request: pb.GrantModelReadRequest, call: Call[App]) -> pb.GrantModelReadResponse:
    version = await ModelVersions(call.uow).get(request.name)
    seconds = request.ttl_seconds or _GRANT_SECONDS
    grant = await call.deps.blobs.grant(version.manifest_digest, request.holder, seconds)
    return pb.GrantModelReadResponse(
        manifest_digest=version.manifest_digest,
        grant=grant,
        expire_time=timestamp(call.clock.now() + timedelta(seconds=seconds)),
    )


async def download_model_file(
    request: pb.DownloadModelFileRequest, call: Call[App]
) -> AsyncIterator[pb.DownloadModelFileResponse]:
    version = await ModelVersions(call.uow).get(request.name)
    # A download may take an hour; the connection is for others meanwhile.
    await call.uow.rollback()
    file = next((file for file in version.files if file.path == request.path), None)
    if file is None:
        message = f"{version.name} has no file {request.path!r}."
        raise DomainError("NOT_FOUND", message, name=f"{version.name}/{request.path}")
    if request.offset > file.size:
        message = f"offset: {request.path} has {file.size} bytes"
        raise DomainError("INVALID_FIELD", message, field="offset")
    async for chunk in call.deps.blobs.get(file.sha256, request.offset):
        yield pb.DownloadModelFileResponse(data=chunk)


def _gate(message: training_pb2.Gate, call: Call[App]) -> Gate:
    now = call.clock.now()
    return Gate(
        gate=message.gate,
        open=message.open,
        evaluation=message.evaluation,
        rule=message.rule,
        figures=dict(message.figures),
        model_digest=message.model_digest,
        decide_time=message.decide_time.ToDatetime(UTC) if message.HasField("decide_time") else now,
        reason=message.reason,
    )
