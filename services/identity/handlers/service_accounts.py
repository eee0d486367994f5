"""Service accounts: programs that act on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.people import ServiceAccount, require_grantable_role
from services.identity.store.repositories import Organizations, Revocations, ServiceAccounts

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({"display_name", "role", "disabled", "labels"})


def message(account: ServiceAccount) -> identity_pb2.ServiceAccount:
    return to_proto(
        account,
        identity_pb2.ServiceAccount(
            display_name=account.display_name,
            role=account.role,  # type: ignore[arg-type]
            disabled=account.disabled,
        ),
    )


async def _revoke_tokens(account: ServiceAccount, call: Call[App]) -> None:
    await Revocations(call.uow).add(account.org, account.name, call.clock.now())


async def get_service_account(request: pb.GetServiceAccountRequest, call: Call[App]) -> identity_pb2.ServiceAccount:
    return message(await ServiceAccounts(call.uow).get(request.name))


async def list_service_accounts(
    request: pb.ListServiceAccountsRequest, call: Call[App]
) -> pb.ListServiceAccountsResponse:
    found, position = await ServiceAccounts(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListServiceAccountsResponse(
        service_accounts=[message(a) for a in found], next_page_token=PageToken.encode(request, position)
    )


async def create_service_account(
    request: pb.CreateServiceAccountRequest, call: Call[App]
) -> identity_pb2.ServiceAccount:
    now = call.clock.now()
    await Organizations(call.uow).get(f"orgs/{org_of(request.parent)}")
    account = ServiceAccount(
        uid=uuid7(),
        name=f"{request.parent}/serviceAccounts/{request.service_account_id or resource_id('sa')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.service_account.display_name,
        role=request.service_account.role,
        disabled=request.service_account.disabled,
        **from_proto(request.service_account),
    )
    require_grantable_role(account.role, call.principal.role, account.org)
    await ServiceAccounts(call.uow).insert(account)
    call.uow.emit("identity.service_account.created", account)
    return message(account)


async def update_service_account(
    request: pb.UpdateServiceAccountRequest, call: Call[App]
) -> identity_pb2.ServiceAccount:
    repository = ServiceAccounts(call.uow)
    account = await repository.get(request.service_account.name)
    account.require_etag(request.service_account.etag)
    require_grantable_role(account.role, call.principal.role, account.org)  # nobody changes somebody above himself
    for field in fields_to_change(request.service_account, request.update_mask, _MUTABLE):
        value = getattr(request.service_account, field)
        setattr(account, field, dict(value) if field == "labels" else value)
    require_grantable_role(account.role, call.principal.role, account.org)
    account.update_time = call.clock.now()
    await repository.save(account)
    await _revoke_tokens(account, call)
    call.uow.emit("identity.service_account.updated", account)
    return message(account)


async def delete_service_account(
    request: pb.DeleteServiceAccountRequest, call: Call[App]
) -> identity_pb2.ServiceAccount:
    repository = ServiceAccounts(call.uow)
    account = await repository.get(request.name)
    account.require_etag(request.etag)
    require_grantable_role(account.role, call.principal.role, account.org)
    await repository.soft_delete(account, call.clock.now())
    await _revoke_tokens(account, call)
    call.uow.emit("identity.service_account.deleted", account)
    return message(account)


async def undelete_service_account(
    request: pb.UndeleteServiceAccountRequest, call: Call[App]
) -> identity_pb2.ServiceAccount:
    repository = ServiceAccounts(call.uow)
    account = await repository.get(request.name, deleted=True)
    account.require_etag(request.etag)
    require_grantable_role(account.role, call.principal.role, account.org)
    await repository.undelete(account, call.clock.now())
    call.uow.emit("identity.service_account.undeleted", account)
    return message(account)
