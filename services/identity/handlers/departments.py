"""Departments: the tree inside an organization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.people import MAX_DEPARTMENT_DEPTH, Department, require_same_org, require_tree
from services.identity.store.repositories import Departments, Organizations

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({"display_name", "parent_department", "labels"})


def message(department: Department) -> identity_pb2.Department:
    return to_proto(
        department,
        identity_pb2.Department(display_name=department.display_name, parent_department=department.parent_department),
    )


async def _require_parent(repository: Departments, department: Department) -> None:
    if department.parent_department:
        require_same_org(department.name, department.parent_department, "parent_department")
        above = await repository.ancestors(department.parent_department, MAX_DEPARTMENT_DEPTH)
        require_tree(department.name, above)


async def get_department(request: pb.GetDepartmentRequest, call: Call[App]) -> identity_pb2.Department:
    return message(await Departments(call.uow).get(request.name))


async def list_departments(request: pb.ListDepartmentsRequest, call: Call[App]) -> pb.ListDepartmentsResponse:
    found, position = await Departments(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListDepartmentsResponse(
        departments=[message(d) for d in found], next_page_token=PageToken.encode(request, position)
    )


async def create_department(request: pb.CreateDepartmentRequest, call: Call[App]) -> identity_pb2.Department:
    now = call.clock.now()
    await Organizations(call.uow).get(f"orgs/{org_of(request.parent)}")
    department = Department(
        uid=uuid7(),
        name=f"{request.parent}/departments/{request.department_id or resource_id('dep')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.department.display_name,
        parent_department=request.department.parent_department,
        **from_proto(request.department),
    )
    repository = Departments(call.uow)
    await _require_parent(repository, department)
    await repository.insert(department)
    call.uow.emit("identity.department.created", department)
    return message(department)


async def update_department(request: pb.UpdateDepartmentRequest, call: Call[App]) -> identity_pb2.Department:
    repository = Departments(call.uow)
    department = await repository.get(request.department.name, for_update=True)
    department.require_etag(request.department.etag)
    for field in fields_to_change(request.department, request.update_mask, _MUTABLE):
        value = getattr(request.department, field)
        setattr(department, field, dict(value) if field == "labels" else value)
    await _require_parent(repository, department)
    department.update_time = call.clock.now()
    await repository.save(department)
    call.uow.emit("identity.department.updated", department)
    return message(department)


async def delete_department(request: pb.DeleteDepartmentRequest, call: Call[App]) -> identity_pb2.Department:
    repository = Departments(call.uow)
    department = await repository.get(request.name)
    department.require_etag(request.etag)
    # Whoever names a department that is gone could not be changed any more.
    if await repository.holds_anything(department.name):
        text = f"{department.name} holds departments or users: move them first."
        raise DomainError("STATE_CONFLICT", text, name=department.name, state="in use", wanted="empty")
    await repository.soft_delete(department, call.clock.now())
    call.uow.emit("identity.department.deleted", department)
    return message(department)


async def undelete_department(request: pb.UndeleteDepartmentRequest, call: Call[App]) -> identity_pb2.Department:
    repository = Departments(call.uow)
    department = await repository.get(request.name, deleted=True)
    department.require_etag(request.etag)
    await _require_parent(repository, department)
    await repository.undelete(department, call.clock.now())
    call.uow.emit("identity.department.undeleted", department)
    return message(department)
