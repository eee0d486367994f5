"""Forms, projects, items and assignments, to their messages and back."""

from __future__ import annotations

from typing import Any

from argosy.dataset.v1 import human_work_pb2 as work_pb
from google.protobuf import json_format, struct_pb2

from libs.common.db.mapping import timestamp, to_proto
from services.dataset.domain.forms import KINDS, Field, Form
from services.dataset.domain.human_work import WorkAssignment, WorkItem, WorkProject, WorkTemplate

_PROJECT_FIELDS = (
    "display_name",
    "description",
    "source",
    "overlap",
    "annotators",
    "reviewers",
    "managers",
    "agreement_threshold",
    "lease_seconds",
    "gold_share",
    "gold_min_accuracy",
    "price_micros",
    "currency",
    "paused",
)


def to_form(message: work_pb.WorkForm) -> Form:
    """The form that a caller gives."""
    fields = tuple(
        Field(f.name, KINDS[f.kind - 1], f.title, tuple(f.choices), f.min, f.max, f.optional) for f in message.fields
    )
    return Form(fields, message.instructions, tuple(message.shown))


def form_message(form: Form) -> work_pb.WorkForm:
    """The form as callers see it."""
    fields = [
        work_pb.WorkField(
            name=f.name,
            kind=work_pb.WorkFieldKind.Name(KINDS.index(f.kind) + 1),
            title=f.title,
            choices=f.choices,
            min=f.min,
            max=f.max,
            optional=f.optional,
        )
        for f in form.fields
    ]
    return work_pb.WorkForm(instructions=form.instructions, shown=form.shown, fields=fields)


def template_message(template: WorkTemplate) -> work_pb.WorkTemplate:
    """The template as callers see it."""
    shown = work_pb.WorkTemplate(
        display_name=template.display_name,
        description=template.description,
        form=form_message(Form.from_json(template.form)),
    )
    return to_proto(template, shown)


def project_message(project: WorkProject) -> work_pb.WorkProject:
    """The project as callers see it, without its progress."""
    shown = work_pb.WorkProject(
        **{field: getattr(project, field) for field in _PROJECT_FIELDS},
        review=work_pb.WorkReview.Name(project.review),
        form=form_message(project.parsed_form()),
    )
    return to_proto(project, shown)


def item_message(item: WorkItem) -> work_pb.WorkItem:
    """The item as its managers and reviewers see it."""
    shown = work_pb.WorkItem(
        subject=item.subject,
        payload=to_struct(item.payload),
        priority=item.priority,
        answer_count=item.submitted,
        agreement=item.agreement,
    )
    for field in ("gold", "answer", "proposal"):
        value = getattr(item, field)
        if value is not None:
            getattr(shown, field).CopyFrom(to_struct(value))
    return to_proto(item, shown)


def assignment_message(
    assignment: WorkAssignment, item: WorkItem | None = None, form: Form | None = None
) -> work_pb.WorkAssignment:
    """The assignment as callers see it.

    Args:
        item: what its annotator has to answer: nothing is shown that tells what others answered, or what is known.
        form: what he is asked.
    """
    shown = work_pb.WorkAssignment(
        annotator=assignment.annotator, active_seconds=assignment.active_seconds, reason=assignment.reason
    )
    if assignment.answer is not None:
        shown.answer.CopyFrom(to_struct(assignment.answer))
    for field in ("lease_expire_time", "submit_time"):
        moment = getattr(assignment, field)
        if moment is not None:
            getattr(shown, field).CopyFrom(timestamp(moment))
    if item is not None:
        blind = work_pb.WorkItem(name=item.name, subject=item.subject, payload=to_struct(item.payload))
        if item.proposal is not None:
            blind.proposal.CopyFrom(to_struct(item.proposal))
        shown.item.CopyFrom(blind)
    if form is not None:
        shown.form.CopyFrom(form_message(form))
    return to_proto(assignment, shown)


def to_struct(value: dict[str, Any]) -> struct_pb2.Struct:
    """JSON as a message."""
    return json_format.ParseDict(value, struct_pb2.Struct())
