"""Model projects: the line of versions of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.training.v1 import model_service_pb2 as pb
from argosy.training.v1 import training_pb2

from libs.common.db.mapping import from_proto
from libs.common.domain import inherit_secrecy
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.life_cycle import LifeCycle
from services.training.domain.models import ModelProject
from services.training.domain.moving import require_fitting
from services.training.handlers.life_cycles import life_cycle_from
from services.training.handlers.messages import project_message
from services.training.store.repositories import ModelProjects, ModelVersions

if TYPE_CHECKING:
    from services.training.app import App

_TEXTS = (
    "display_name",
    "description",
    "train_framework",
    "inference_framework",
    "code_repo_url",
    "metrics_url",
    "model_uri",
)
_MUTABLE = frozenset({*_TEXTS, "labels", "life_cycle"})


async def get_model_project(request: pb.GetModelProjectRequest, call: Call[App]) -> training_pb2.ModelProject:
    return project_message(await ModelProjects(call.uow).get(request.name))


async def list_model_projects(request: pb.ListModelProjectsRequest, call: Call[App]) -> pb.ListModelProjectsResponse:
    found, position = await ModelProjects(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListModelProjectsResponse(
        model_projects=[project_message(project) for project in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_model_project(request: pb.CreateModelProjectRequest, call: Call[App]) -> training_pb2.ModelProject:
    given, now = request.model_project, call.clock.now()
    own = from_proto(given)
    project = ModelProject(
        uid=uuid7(),
        name=f"{request.parent}/modelProjects/{request.model_project_id or resource_id('model')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=own["labels"],
        secrecy=inherit_secrecy(own["secrecy"]),
        life_cycle=life_cycle_from(given.life_cycle),
        **{name: getattr(given, name) for name in _TEXTS},
    )
    await ModelProjects(call.uow).insert(project)
    call.uow.emit("training.model_project.created", project)
    return project_message(project)


async def update_model_project(request: pb.UpdateModelProjectRequest, call: Call[App]) -> training_pb2.ModelProject:
    repository = ModelProjects(call.uow)
    # Locked: no version may come into a stage that goes meanwhile.
    project = await repository.get(request.model_project.name, for_update=True)
    project.require_etag(request.model_project.etag)
    for field in fields_to_change(request.model_project, request.update_mask, _MUTABLE):
        value = getattr(request.model_project, field)
        if field == "life_cycle":
            await _change_life_cycle(project, life_cycle_from(value), call)
        else:
            setattr(project, field, dict(value) if field == "labels" else value)
    project.update_time = call.clock.now()
    await repository.save(project)
    call.uow.emit("training.model_project.updated", project)
    return project_message(project)


async def delete_model_project(request: pb.DeleteModelProjectRequest, call: Call[App]) -> training_pb2.ModelProject:
    repository = ModelProjects(call.uow)
    project = await repository.get(request.name)
    project.require_etag(request.etag)
    await repository.soft_delete(project, call.clock.now())
    call.uow.emit("training.model_project.deleted", project)
    return project_message(project)


async def undelete_model_project(request: pb.UndeleteModelProjectRequest, call: Call[App]) -> training_pb2.ModelProject:
    repository = ModelProjects(call.uow)
    project = await repository.get(request.name, deleted=True)
    project.require_etag(request.etag)
    await repository.undelete(project, call.clock.now())
    call.uow.emit("training.model_project.undeleted", project)
    return project_message(project)


async def _change_life_cycle(project: ModelProject, cycle: LifeCycle, call: Call[App]) -> None:
    """Versions keep their stages, so every stage that has one must stay and mean the same."""
    require_fitting(cycle, project.life_cycle, await ModelVersions(call.uow).stages(project.name))
    project.life_cycle = cycle
