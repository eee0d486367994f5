"""Reviews: a second person looks at answers, accepts one or sends some back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as pb

from libs.common.errors import invalid_field
from libs.common.rpc.call import Call
from libs.common.rpc.structs import from_struct
from services.dataset.domain.consensus import consensus
from services.dataset.domain.human_work import REVIEW_LEASE, AssignmentState, WorkAssignment, given
from services.dataset.handlers.work import ACCEPTED, MOST_ANSWER, keep_item
from services.dataset.handlers.work_messages import assignment_message, form_message, item_message
from services.dataset.handlers.work_projects import open_project
from services.dataset.store.work import WorkAssignments, WorkItems

if TYPE_CHECKING:
    from services.dataset.app import App


async def take_review(request: pb.TakeReviewRequest, call: Call[App]) -> pb.TakeReviewResponse:
    project, subject, now = await open_project(call, request.name), call.principal.subject, call.clock.now()
    project.require_reviewer(subject, call.principal.role)
    item = await WorkItems(call.uow).next_review(project, subject, now)
    if item is None:
        return pb.TakeReviewResponse()
    item.reviewer, item.review_expire_time = subject, now + REVIEW_LEASE
    await keep_item(item, call)
    answers = [a for a in await WorkAssignments(call.uow).of_item(item) if a.state == AssignmentState.SUBMITTED]
    return pb.TakeReviewResponse(
        item=item_message(item),
        assignments=[assignment_message(one) for one in answers],
        form=form_message(project.parsed_form()),
    )


async def decide_review(request: pb.DecideReviewRequest, call: Call[App]) -> work_pb.WorkItem:
    project, subject = await open_project(call, request.name.rsplit("/items/", 1)[0]), call.principal.subject
    project.require_reviewer(subject, call.principal.role)
    item = await WorkItems(call.uow).get(request.name, for_update=True)
    item.require_reviewed_by(subject, call.clock.now())
    assignments = await WorkAssignments(call.uow).of_item(item)
    if request.returns:
        await _send_back(request, assignments, call)
        item.open_again(subject, assignments)
        await keep_item(item, call)
    else:
        form = project.parsed_form()
        answer = from_struct(request.answer, "answer", MOST_ANSWER)
        answer = answer or await asyncio.to_thread(consensus, form, given(assignments))
        form.require_answered(answer)
        item.accept(answer)
        await keep_item(item, call)
        call.uow.emit(ACCEPTED, item)
    return item_message(item)


async def _send_back(request: pb.DecideReviewRequest, assignments: list[WorkAssignment], call: Call[App]) -> None:
    by_name, now = {assignment.name: assignment for assignment in assignments}, call.clock.now()
    for number, returned in enumerate(request.returns):
        assignment = by_name.get(returned.assignment)
        if assignment is None:
            raise invalid_field(f"returns[{number}].assignment", "is no answer to this item")
        assignment.send_back(returned.reason, now)
        assignment.update_time = now
        await WorkAssignments(call.uow).save(assignment)
