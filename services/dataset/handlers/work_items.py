"""Items of projects: added and looked at by those who manage them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.domain import inherit_secrecy
from libs.common.ids import uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.rpc.structs import from_struct
from services.dataset.domain.forms import Answer, Form
from services.dataset.domain.human_work import ItemState, WorkItem, WorkProject
from services.dataset.handlers.work import ACCEPTED
from services.dataset.handlers.work_messages import assignment_message, item_message
from services.dataset.handlers.work_projects import open_project
from services.dataset.store.work import WorkAssignments, WorkItems, WorkProjects

if TYPE_CHECKING:
    from services.dataset.app import App

_MOST_PAYLOAD = 256 << 10


async def add_work_items(request: pb.AddWorkItemsRequest, call: Call[App]) -> pb.AddWorkItemsResponse:
    # The lock gives each item a position of its own.
    project = await open_project(call, request.parent, for_update=True)
    project.require_manager(call.principal.subject, call.principal.role)
    form = project.parsed_form()
    items = [_new_item(project, form, given, number, call) for number, given in enumerate(request.items)]
    if request.accept_score:
        for item in items:
            item.accept_proposal(form, request.accept_score)
    await WorkItems(call.uow).insert_all(items)
    await WorkProjects(call.uow).save(project)
    accepted = [item for item in items if item.state == ItemState.ACCEPTED]
    for item in accepted:
        call.uow.emit(ACCEPTED, item)
    return pb.AddWorkItemsResponse(item_count=len(items), accepted_count=len(accepted))


def _new_item(project: WorkProject, form: Form, given: work_pb.WorkItem, number: int, call: Call[App]) -> WorkItem:
    place, now = f"items[{number}]", call.clock.now()
    project.item_count += 1
    standard = from_proto(given)
    standard["secrecy"] = inherit_secrecy(standard["secrecy"], project.secrecy)
    return WorkItem(
        uid=uuid7(),
        name=f"{project.name}/items/{project.item_count}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        state=ItemState.OPEN,
        **standard,
        subject=given.subject,
        payload=from_struct(given.payload, f"{place}.payload", _MOST_PAYLOAD),
        gold=_answer(form, given, "gold", place),
        proposal=_answer(form, given, "proposal", place),
        priority=given.priority,
        position=project.item_count,
    )


def _answer(form: Form, given: work_pb.WorkItem, field: str, place: str) -> Answer | None:
    if not given.HasField(field):
        return None
    answer = from_struct(getattr(given, field), f"{place}.{field}", _MOST_PAYLOAD)
    form.require_answered(answer, f"{place}.{field}")
    return answer


async def get_work_item(request: pb.GetWorkItemRequest, call: Call[App]) -> work_pb.WorkItem:
    await _readable_project(call, request.name.rsplit("/items/", 1)[0])
    return item_message(await WorkItems(call.uow).get(request.name))


async def list_work_items(request: pb.ListWorkItemsRequest, call: Call[App]) -> pb.ListWorkItemsResponse:
    project = await _readable_project(call, request.parent)
    state = work_pb.WorkItem.State.Name(request.state).removeprefix("STATE_") if request.state else ""
    found, position = await WorkItems(call.uow).list_of(
        project, state, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListWorkItemsResponse(
        items=[item_message(item) for item in found], next_page_token=PageToken.encode(request, position)
    )


async def list_work_assignments(
    request: pb.ListWorkAssignmentsRequest, call: Call[App]
) -> pb.ListWorkAssignmentsResponse:
    await _readable_project(call, request.parent.rsplit("/items/", 1)[0])
    item = await WorkItems(call.uow).get(request.parent)
    found, position = await WorkAssignments(call.uow).list(
        item.name, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListWorkAssignmentsResponse(
        assignments=[assignment_message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def _readable_project(call: Call[App], name: str) -> WorkProject:
    project = await open_project(call, name)
    project.require_reviewer(call.principal.subject, call.principal.role)
    return project
