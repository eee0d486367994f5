"""Prompts and their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.app.v1 import app_pb2
from argosy.app.v1 import app_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError, Parent, inherit_secrecy
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.app.domain.prompts import Prompt, PromptVersion
from services.app.store.repositories import Prompts, PromptVersions

if TYPE_CHECKING:
    from services.app.app import App

_MUTABLE = frozenset({"display_name", "description", "labels"})


def message(prompt: Prompt) -> app_pb2.Prompt:
    return to_proto(
        prompt,
        app_pb2.Prompt(
            display_name=prompt.display_name, description=prompt.description, latest_version=prompt.latest_version
        ),
    )


def version_message(version: PromptVersion) -> app_pb2.PromptVersion:
    return to_proto(
        version,
        app_pb2.PromptVersion(
            system=version.system,
            template=version.template,
            variables=version.variables,
            temperature=version.temperature,
            max_tokens=version.max_tokens,
            raw=version.raw,
        ),
    )


async def get_prompt(request: pb.GetPromptRequest, call: Call[App]) -> app_pb2.Prompt:
    return message(await Prompts(call.uow).get(request.name))


async def list_prompts(request: pb.ListPromptsRequest, call: Call[App]) -> pb.ListPromptsResponse:
    found, position = await Prompts(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListPromptsResponse(
        prompts=[message(p) for p in found], next_page_token=PageToken.encode(request, position)
    )


async def create_prompt(request: pb.CreatePromptRequest, call: Call[App]) -> app_pb2.Prompt:
    now = call.clock.now()
    prompt = Prompt(
        uid=uuid7(),
        name=f"{request.parent}/prompts/{request.prompt_id or resource_id('prompt')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.prompt.display_name,
        description=request.prompt.description,
        **from_proto(request.prompt),
    )
    await Prompts(call.uow).insert(prompt)
    call.uow.emit("app.prompt.created", prompt)
    return message(prompt)


async def update_prompt(request: pb.UpdatePromptRequest, call: Call[App]) -> app_pb2.Prompt:
    repository = Prompts(call.uow)
    prompt = await repository.get(request.prompt.name)
    prompt.require_etag(request.prompt.etag)
    for field in fields_to_change(request.prompt, request.update_mask, _MUTABLE):
        value = getattr(request.prompt, field)
        setattr(prompt, field, dict(value) if field == "labels" else value)
    prompt.update_time = call.clock.now()
    await repository.save(prompt)
    call.uow.emit("app.prompt.updated", prompt)
    return message(prompt)


async def delete_prompt(request: pb.DeletePromptRequest, call: Call[App]) -> app_pb2.Prompt:
    repository = Prompts(call.uow)
    prompt = await repository.get(request.name)
    prompt.require_etag(request.etag)
    await repository.soft_delete(prompt, call.clock.now())
    call.uow.emit("app.prompt.deleted", prompt)
    return message(prompt)


async def undelete_prompt(request: pb.UndeletePromptRequest, call: Call[App]) -> app_pb2.Prompt:
    repository = Prompts(call.uow)
    prompt = await repository.get(request.name, deleted=True)
    prompt.require_etag(request.etag)
    await repository.undelete(prompt, call.clock.now())
    call.uow.emit("app.prompt.undeleted", prompt)
    return message(prompt)


async def get_prompt_version(request: pb.GetPromptVersionRequest, call: Call[App]) -> app_pb2.PromptVersion:
    return version_message(await PromptVersions(call.uow).get(request.name))


async def list_prompt_versions(request: pb.ListPromptVersionsRequest, call: Call[App]) -> pb.ListPromptVersionsResponse:
    await Prompts(call.uow).get(request.parent)
    found, position = await PromptVersions(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListPromptVersionsResponse(
        prompt_versions=[version_message(v) for v in found], next_page_token=PageToken.encode(request, position)
    )


async def create_prompt_version(request: pb.CreatePromptVersionRequest, call: Call[App]) -> app_pb2.PromptVersion:
    if request.prompt_version_id:
        message_text = "prompt_version_id: versions are numbered by the service; leave it empty"
        raise DomainError("INVALID_FIELD", message_text, field="prompt_version_id")
    repository = Prompts(call.uow)
    prompt = await repository.get(request.parent, for_update=True)
    wanted, now = request.prompt_version, call.clock.now()
    own = from_proto(wanted)
    version = PromptVersion(
        uid=uuid7(),
        name=prompt.next_version(),
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=own["labels"],
        secrecy=inherit_secrecy(own["secrecy"], prompt.secrecy),
        lineage=[Parent(prompt.name, relation="version_of")],
        system=wanted.system,
        template=wanted.template,
        variables=dict(wanted.variables),
        temperature=wanted.temperature,
        max_tokens=wanted.max_tokens,
        raw=wanted.raw,
    )
    version.require_valid()
    prompt.update_time = now
    await repository.save(prompt)
    await PromptVersions(call.uow).insert(version)
    call.uow.emit("app.prompt_version.created", version)
    return version_message(version)


async def render_prompt(request: pb.RenderPromptRequest, call: Call[App]) -> pb.RenderPromptResponse:
    version = await PromptVersions(call.uow).get(request.name)
    return pb.RenderPromptResponse(system=version.system, text=version.render(request.input, dict(request.variables)))
