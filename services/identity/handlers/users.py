"""Users: the people of an organization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.people import User, require_grantable_role, require_same_org
from services.identity.store.repositories import Departments, Organizations, Revocations, Users

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({"display_name", "email", "role", "department", "disabled", "labels"})


def message(user: User) -> identity_pb2.User:
    return to_proto(
        user,
        identity_pb2.User(
            display_name=user.display_name,
            email=user.email,
            role=user.role,  # type: ignore[arg-type]
            department=user.department,
            disabled=user.disabled,
        ),
    )


async def _require_valid(user: User, call: Call[App]) -> None:
    require_grantable_role(user.role, call.principal.role, user.org)
    if user.department:
        require_same_org(user.name, user.department, "department")
        await Departments(call.uow).get(user.department)


async def _revoke_tokens(user: User, call: Call[App]) -> None:
    """Tokens that say what no longer holds (role, department, active) are refused from now on; new ones are issued."""
    await Revocations(call.uow).add(user.org, user.name, call.clock.now())


async def get_user(request: pb.GetUserRequest, call: Call[App]) -> identity_pb2.User:
    return message(await Users(call.uow).get(request.name))


async def list_users(request: pb.ListUsersRequest, call: Call[App]) -> pb.ListUsersResponse:
    found, position = await Users(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListUsersResponse(users=[message(u) for u in found], next_page_token=PageToken.encode(request, position))


async def create_user(request: pb.CreateUserRequest, call: Call[App]) -> identity_pb2.User:
    now = call.clock.now()
    await Organizations(call.uow).get(f"orgs/{org_of(request.parent)}")
    user = User(
        uid=uuid7(),
        name=f"{request.parent}/users/{request.user_id or resource_id('user')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.user.display_name,
        email=request.user.email,
        role=request.user.role,
        department=request.user.department,
        disabled=request.user.disabled,
        **from_proto(request.user),
    )
    await _require_valid(user, call)
    await Users(call.uow).insert(user)
    call.uow.emit("identity.user.created", user)
    return message(user)


async def update_user(request: pb.UpdateUserRequest, call: Call[App]) -> identity_pb2.User:
    repository = Users(call.uow)
    user = await repository.get(request.user.name)
    user.require_etag(request.user.etag)
    require_grantable_role(user.role, call.principal.role, user.org)  # nobody changes somebody above himself
    for field in fields_to_change(request.user, request.update_mask, _MUTABLE):
        value = getattr(request.user, field)
        setattr(user, field, dict(value) if field == "labels" else value)
    await _require_valid(user, call)
    user.update_time = call.clock.now()
    await repository.save(user)
    await _revoke_tokens(user, call)
    call.uow.emit("identity.user.updated", user)
    return message(user)


async def delete_user(request: pb.DeleteUserRequest, call: Call[App]) -> identity_pb2.User:
    repository = Users(call.uow)
    user = await repository.get(request.name)
    user.require_etag(request.etag)
    require_grantable_role(user.role, call.principal.role, user.org)
    await repository.soft_delete(user, call.clock.now())
    await _revoke_tokens(user, call)
    call.uow.emit("identity.user.deleted", user)
    return message(user)


async def undelete_user(request: pb.UndeleteUserRequest, call: Call[App]) -> identity_pb2.User:
    repository = Users(call.uow)
    user = await repository.get(request.name, deleted=True)
    user.require_etag(request.etag)
    require_grantable_role(user.role, call.principal.role, user.org)
    await repository.undelete(user, call.clock.now())
    call.uow.emit("identity.user.undeleted", user)
    return message(user)
