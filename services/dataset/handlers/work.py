"""Work in somebody's hands: taken, saved, submitted, given back, disputed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as pb

from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.rpc.structs import from_struct
from services.dataset.domain.human_work import (
    MAX_HELD,
    AssignmentState,
    ItemState,
    WorkAssignment,
    WorkItem,
    WorkProject,
)
from services.dataset.handlers.work_messages import assignment_message
from services.dataset.handlers.work_projects import open_project
from services.dataset.store.work import WorkAssignments, WorkItems, WorkProjects

if TYPE_CHECKING:
    from services.dataset.app import App

MOST_ANSWER = 1 << 20
# Told to whoever waits for answers.
ACCEPTED = "dataset.work_item.accepted"


async def take_work(request: pb.TakeWorkRequest, call: Call[App]) -> pb.TakeWorkResponse:
    project, subject = await open_project(call, request.name), call.principal.subject
    project.require_annotator(subject, call.principal.role)
    held = await WorkAssignments(call.uow).held(project, subject, call.clock.now())
    if held and (not request.another or len(held) >= MAX_HELD):
        assignment, item = held[0], await WorkItems(call.uow).get(held[0].parent)
    else:
        taken = await _take(project, subject, call)
        if taken is None:
            return pb.TakeWorkResponse()
        assignment, item = taken
    return pb.TakeWorkResponse(assignment=assignment_message(assignment, item, project.parsed_form()))


async def _take(project: WorkProject, subject: str, call: Call[App]) -> tuple[WorkAssignment, WorkItem] | None:
    record = await WorkAssignments(call.uow).record(project, subject)
    project.require_trusted(subject, record.known, record.right)
    item = None
    if project.gives_gold(subject, record.taken):
        item = await _free_item(project, subject, call, gold=True)
    item = item or await _free_item(project, subject, call, gold=False)
    if item is None:
        return None
    now = call.clock.now()
    assignment = WorkAssignment(
        uid=uuid7(),
        name=f"{item.name}/assignments/{resource_id('a')}",
        create_time=now,
        update_time=now,
        creator=subject,
        state=AssignmentState.HELD,
        secrecy=item.secrecy,
        project=project.name,
        annotator=subject,
        lease_expire_time=now + timedelta(seconds=project.lease_seconds),
    )
    await WorkAssignments(call.uow).insert(assignment)
    await _renew(item, call)
    return assignment, item


async def _free_item(project: WorkProject, subject: str, call: Call[App], *, gold: bool) -> WorkItem | None:
    """The next item with a place for somebody, locked; what was left behind goes back to the queue on the way."""
    items, now, beyond = WorkItems(call.uow), call.clock.now(), None
    while item := await items.next_for(project, subject, now, gold=gold, beyond=beyond):
        assignments = WorkAssignments(call.uow)
        overdue = [one for one in await assignments.of_item(item) if one.is_overdue(now)]
        for assignment in overdue:
            assignment.expire()
            assignment.update_time = now
            await assignments.save(assignment)
        if overdue:
            await _renew(item, call)
        if item.has_place_for(subject, project.overlap):
            return item
        beyond = (item.priority, item.position)
    return None


async def _renew(item: WorkItem, call: Call[App]) -> None:
    item.renew(await WorkAssignments(call.uow).of_item(item))
    await keep_item(item, call)


async def list_pending_work(request: pb.ListPendingWorkRequest, call: Call[App]) -> pb.ListPendingWorkResponse:
    found, position = await WorkAssignments(call.uow).pending(
        request.parent, call.principal.subject, page_size(request.page_size), PageToken.decode(request)
    )
    items = {item.name: item for item in await WorkItems(call.uow).named([one.parent for one in found])}
    shown = [assignment_message(one, items.get(one.parent)) for one in found]
    return pb.ListPendingWorkResponse(assignments=shown, next_page_token=PageToken.encode(request, position))


async def save_draft(request: pb.SaveDraftRequest, call: Call[App]) -> work_pb.WorkAssignment:
    project, item, assignment = await _held(request.name, call)
    assignment.require_pending()
    assignment.answer = from_struct(request.answer, "answer", MOST_ANSWER)
    assignment.active_seconds = request.active_seconds
    assignment.hold(call.clock.now() + timedelta(seconds=project.lease_seconds))
    await _save(assignment, call)
    await _renew(item, call)
    return assignment_message(assignment)


async def submit_work(request: pb.SubmitWorkRequest, call: Call[App]) -> work_pb.WorkAssignment:
    project, item, assignment = await _held(request.name, call)
    answer = from_struct(request.answer, "answer", MOST_ANSWER)
    # Boxes are compared pair by pair, while this process has other calls to answer.
    form, now = project.parsed_form(), call.clock.now()
    await asyncio.to_thread(assignment.submit, form, item, answer, request.active_seconds, now)
    await _save(assignment, call)
    before = item.state
    await asyncio.to_thread(item.settle, project, await WorkAssignments(call.uow).of_item(item))
    await keep_item(item, call)
    if item.state == ItemState.ACCEPTED != before:
        call.uow.emit(ACCEPTED, item)
    return assignment_message(assignment)


async def release_work(request: pb.ReleaseWorkRequest, call: Call[App]) -> work_pb.WorkAssignment:
    _, item, assignment = await _held(request.name, call)
    assignment.release(request.reason)
    await _save(assignment, call)
    await _renew(item, call)
    return assignment_message(assignment)


async def dispute_return(request: pb.DisputeReturnRequest, call: Call[App]) -> work_pb.WorkAssignment:
    _, item, assignment = await _held(request.name, call)
    assignment.dispute(request.reason)
    await _save(assignment, call)
    item.dispute(await WorkAssignments(call.uow).of_item(item))
    await keep_item(item, call)
    return assignment_message(assignment)


async def _held(name: str, call: Call[App]) -> tuple[WorkProject, WorkItem, WorkAssignment]:
    """An assignment of the caller with its item, locked in this order, as everywhere."""
    item_name = name.rsplit("/assignments/", 1)[0]
    seen = await WorkAssignments(call.uow).get(name)
    seen.require_holder(call.principal.subject)
    project = await WorkProjects(call.uow).get(seen.project)
    item = await WorkItems(call.uow).get(item_name, for_update=True)
    return project, item, await WorkAssignments(call.uow).get(name, for_update=True)


async def _save(assignment: WorkAssignment, call: Call[App]) -> None:
    assignment.update_time = call.clock.now()
    await WorkAssignments(call.uow).save(assignment)


async def keep_item(item: WorkItem, call: Call[App]) -> None:
    """Saves a changed item."""
    item.update_time = call.clock.now()
    await WorkItems(call.uow).save(item)
