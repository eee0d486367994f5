"""Aliases: names of versions that can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.training.v1 import model_registry_service_pb2 as pb
from argosy.training.v1 import training_events_pb2

from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.ids import uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.training.domain.models import AliasChange, ModelAlias
from services.training.handlers.messages import alias_message
from services.training.store.registry import ModelAliases
from services.training.store.repositories import ModelProjects, ModelVersions

if TYPE_CHECKING:
    from services.training.app import App


async def get_model_alias(request: pb.GetModelAliasRequest, call: Call[App]) -> pb.ModelAlias:
    return alias_message(await ModelAliases(call.uow).get(request.name))


async def list_model_aliases(request: pb.ListModelAliasesRequest, call: Call[App]) -> pb.ListModelAliasesResponse:
    await ModelProjects(call.uow).get(request.parent)
    found, position = await ModelAliases(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListModelAliasesResponse(
        model_aliases=[alias_message(alias) for alias in found], next_page_token=PageToken.encode(request, position)
    )


async def set_model_alias(request: pb.SetModelAliasRequest, call: Call[App]) -> pb.ModelAlias:
    repository, now = ModelAliases(call.uow), call.clock.now()
    project = request.name.rpartition("/aliases/")[0]
    if request.model_version.rpartition("/versions/")[0] != project:
        raise DomainError("INVALID_FIELD", f"model_version: must be one of {project}", field="model_version")
    await ModelProjects(call.uow).get(project)
    # Locked: it must not be deleted meanwhile.
    await ModelVersions(call.uow).get(request.model_version, for_update=True)
    alias = await repository.find(request.name, deleted=True, for_update=True)
    before = "" if alias is None or alias.delete_time is not None else alias.model_version
    if alias is None:
        alias = ModelAlias(
            uid=uuid7(),
            name=request.name,
            create_time=now,
            update_time=now,
            creator=call.principal.subject,
            model_version=request.model_version,
        )
        alias.require_etag(request.etag)
        await repository.insert(alias)
    else:
        alias.require_etag(request.etag)
        alias.model_version, alias.update_time, alias.delete_time = request.model_version, now, None
        await repository.save(alias)
    if before != alias.model_version:
        await _keep(alias, before, alias.model_version, request.reason, call)
    return alias_message(alias)


async def delete_model_alias(request: pb.DeleteModelAliasRequest, call: Call[App]) -> pb.ModelAlias:
    repository = ModelAliases(call.uow)
    alias = await repository.get(request.name, for_update=True)
    alias.require_etag(request.etag)
    await repository.soft_delete(alias, call.clock.now())
    await _keep(alias, alias.model_version, "", request.reason, call)
    return alias_message(alias)


async def list_model_alias_changes(
    request: pb.ListModelAliasChangesRequest, call: Call[App]
) -> pb.ListModelAliasChangesResponse:
    project = await ModelProjects(call.uow).get(request.parent, deleted=True)
    found, position = await ModelAliases(call.uow).changes(
        project.name, page_size(request.page_size), PageToken.decode(request)
    )
    changes = [
        pb.ModelAliasChange(
            alias=change.alias,
            from_version=change.from_version,
            to_version=change.to_version,
            actor=change.actor,
            time=timestamp(change.time),
            reason=change.reason,
        )
        for change in found
    ]
    return pb.ListModelAliasChangesResponse(changes=changes, next_page_token=PageToken.encode(request, position))


async def _keep(alias: ModelAlias, before: str, after: str, reason: str, call: Call[App]) -> None:
    change = AliasChange(alias.id, before, after, call.principal.subject, alias.update_time, reason)
    await ModelAliases(call.uow).keep_change(alias.parent, change)
    payload = training_events_pb2.ModelAliasChanged(alias=alias.name, version=after)
    call.uow.emit("training.model_alias.changed", alias, payload)
