"""Applications and what was published of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.app.v1 import app_events_pb2, app_pb2
from argosy.app.v1 import app_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError, Parent, inherit_secrecy
from libs.common.ids import NamePattern, org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.app.domain.applications import Application, ApplicationVersion
from services.app.store.repositories import Applications, ApplicationVersions, PromptVersions

if TYPE_CHECKING:
    from services.app.app import App

_MUTABLE = frozenset({"display_name", "description", "prompt_version", "deployment", "labels"})
_PROMPT_VERSION = NamePattern("orgs/{org}/prompts/{prompt}/versions/{version}")
_DEPLOYMENT = NamePattern("orgs/{org}/deployments/{deployment}")


def message(application: Application) -> app_pb2.Application:
    return to_proto(
        application,
        app_pb2.Application(
            display_name=application.display_name,
            description=application.description,
            prompt_version=application.prompt_version,
            deployment=application.deployment,
            published_version=application.published_version,
        ),
    )


def version_message(version: ApplicationVersion) -> app_pb2.ApplicationVersion:
    return to_proto(
        version, app_pb2.ApplicationVersion(prompt_version=version.prompt_version, deployment=version.deployment)
    )


async def _require_parts(application: Application, call: Call[App]) -> None:
    """What the application is made of must exist in its own organization, as far as this service can know."""
    if application.prompt_version:
        _PROMPT_VERSION.parse(application.prompt_version, "application.prompt_version")
        if await PromptVersions(call.uow).find(application.prompt_version) is None:
            message_text = "application.prompt_version: there is no such prompt version"
            raise DomainError("INVALID_FIELD", message_text, field="application.prompt_version")
    if application.deployment:
        _DEPLOYMENT.parse(application.deployment, "application.deployment")
        if org_of(application.deployment) != application.org:
            message_text = "application.deployment: must lie in the same organization"
            raise DomainError("INVALID_FIELD", message_text, field="application.deployment")


async def get_application(request: pb.GetApplicationRequest, call: Call[App]) -> app_pb2.Application:
    return message(await Applications(call.uow).get(request.name))


async def list_applications(request: pb.ListApplicationsRequest, call: Call[App]) -> pb.ListApplicationsResponse:
    found, position = await Applications(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListApplicationsResponse(
        applications=[message(a) for a in found], next_page_token=PageToken.encode(request, position)
    )


async def create_application(request: pb.CreateApplicationRequest, call: Call[App]) -> app_pb2.Application:
    now = call.clock.now()
    application = Application(
        uid=uuid7(),
        name=f"{request.parent}/applications/{request.application_id or resource_id('app')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.application.display_name,
        description=request.application.description,
        prompt_version=request.application.prompt_version,
        deployment=request.application.deployment,
        **from_proto(request.application),
    )
    await _require_parts(application, call)
    await Applications(call.uow).insert(application)
    call.uow.emit("app.application.created", application)
    return message(application)


async def update_application(request: pb.UpdateApplicationRequest, call: Call[App]) -> app_pb2.Application:
    repository = Applications(call.uow)
    application = await repository.get(request.application.name)
    application.require_etag(request.application.etag)
    for field in fields_to_change(request.application, request.update_mask, _MUTABLE):
        value = getattr(request.application, field)
        setattr(application, field, dict(value) if field == "labels" else value)
    await _require_parts(application, call)
    application.update_time = call.clock.now()
    await repository.save(application)
    call.uow.emit("app.application.updated", application)
    return message(application)


async def delete_application(request: pb.DeleteApplicationRequest, call: Call[App]) -> app_pb2.Application:
    repository = Applications(call.uow)
    application = await repository.get(request.name)
    application.require_etag(request.etag)
    await repository.soft_delete(application, call.clock.now())
    call.uow.emit("app.application.deleted", application)
    return message(application)


async def undelete_application(request: pb.UndeleteApplicationRequest, call: Call[App]) -> app_pb2.Application:
    repository = Applications(call.uow)
    application = await repository.get(request.name, deleted=True)
    application.require_etag(request.etag)
    await repository.undelete(application, call.clock.now())
    call.uow.emit("app.application.undeleted", application)
    return message(application)


async def publish_application(request: pb.PublishApplicationRequest, call: Call[App]) -> app_pb2.ApplicationVersion:
    repository = Applications(call.uow)
    application = await repository.get(request.name, for_update=True)
    application.require_etag(request.etag)
    name, now = application.publish(), call.clock.now()
    prompt_version = await PromptVersions(call.uow).get(application.prompt_version)
    version = ApplicationVersion(
        uid=uuid7(),
        name=name,
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        secrecy=inherit_secrecy(application.secrecy, prompt_version.secrecy),
        lineage=[
            Parent(application.name, relation="version_of"),
            Parent(application.prompt_version, relation="prompted_by"),
            Parent(application.deployment, relation="answered_by"),
        ],
        prompt_version=application.prompt_version,
        deployment=application.deployment,
    )
    application.update_time = now
    await repository.save(application)
    await ApplicationVersions(call.uow).insert(version)
    published = app_events_pb2.ApplicationPublished(
        application=application.name,
        version=version.name,
        prompt_version=version.prompt_version,
        deployment=version.deployment,
    )
    call.uow.emit("app.application.published", version, published)
    return version_message(version)


async def get_application_version(
    request: pb.GetApplicationVersionRequest, call: Call[App]
) -> app_pb2.ApplicationVersion:
    return version_message(await ApplicationVersions(call.uow).get(request.name))


async def list_application_versions(
    request: pb.ListApplicationVersionsRequest, call: Call[App]
) -> pb.ListApplicationVersionsResponse:
    await Applications(call.uow).get(request.parent)
    found, position = await ApplicationVersions(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListApplicationVersionsResponse(
        application_versions=[version_message(v) for v in found],
        next_page_token=PageToken.encode(request, position),
    )
