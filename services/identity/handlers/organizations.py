"""Organizations: the tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.people import SYSTEM_ORG, Organization
from services.identity.store.repositories import Organizations, Revocations

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({"display_name", "record_content", "labels"})


def message(organization: Organization) -> identity_pb2.Organization:
    return to_proto(
        organization,
        identity_pb2.Organization(display_name=organization.display_name, record_content=organization.record_content),
    )


async def get_organization(request: pb.GetOrganizationRequest, call: Call[App]) -> identity_pb2.Organization:
    return message(await Organizations(call.uow).get(request.name))


async def list_organizations(request: pb.ListOrganizationsRequest, call: Call[App]) -> pb.ListOrganizationsResponse:
    found, position = await Organizations(call.uow).list(
        None, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListOrganizationsResponse(
        organizations=[message(o) for o in found], next_page_token=PageToken.encode(request, position)
    )


async def create_organization(request: pb.CreateOrganizationRequest, call: Call[App]) -> identity_pb2.Organization:
    now = call.clock.now()
    organization = Organization(
        uid=uuid7(),
        name=f"orgs/{request.organization_id or resource_id('org')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.organization.display_name,
        record_content=request.organization.record_content,
        **from_proto(request.organization),
    )
    await Organizations(call.uow).insert(organization)
    call.uow.emit("identity.organization.created", organization)
    return message(organization)


async def update_organization(request: pb.UpdateOrganizationRequest, call: Call[App]) -> identity_pb2.Organization:
    repository = Organizations(call.uow)
    organization = await repository.get(request.organization.name)
    organization.require_etag(request.organization.etag)
    for field in fields_to_change(request.organization, request.update_mask, _MUTABLE):
        value = getattr(request.organization, field)
        setattr(organization, field, dict(value) if field == "labels" else value)
    organization.update_time = call.clock.now()
    await repository.save(organization)
    call.uow.emit("identity.organization.updated", organization)
    return message(organization)


async def delete_organization(request: pb.DeleteOrganizationRequest, call: Call[App]) -> identity_pb2.Organization:
    repository = Organizations(call.uow)
    organization = await repository.get(request.name)
    organization.require_etag(request.etag)
    if organization.id == SYSTEM_ORG:
        raise DomainError("STATE_CONFLICT", f"orgs/{SYSTEM_ORG} cannot be deleted.", name=organization.name)
    now = call.clock.now()
    await repository.soft_delete(organization, now)
    await Revocations(call.uow).add(organization.org, organization.name, now)
    call.uow.emit("identity.organization.deleted", organization)
    return message(organization)


async def undelete_organization(request: pb.UndeleteOrganizationRequest, call: Call[App]) -> identity_pb2.Organization:
    repository = Organizations(call.uow)
    organization = await repository.get(request.name, deleted=True)
    organization.require_etag(request.etag)
    await repository.undelete(organization, call.clock.now())
    call.uow.emit("identity.organization.undeleted", organization)
    return message(organization)
