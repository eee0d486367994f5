"""Forms, projects, items and assignments, to their messages and back."""

from __future__ import annotations

import math
from typing import Any

from argosy.dataset.v1 import human_work_pb2 as work_pb
from google.protobuf import json_format, struct_pb2

from libs.common.db.mapping import timestamp, to_proto
from libs.common.errors import invalid_field
from services.dataset.domain.forms import KINDS, Field, Form
from services.dataset.domain.human_work import WorkAssignment, WorkItem, WorkProject, WorkTemplate

# Deeper ones are no payload that a page could show.
_MOST_DEPTH = 32
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


def from_struct(message: struct_pb2.Struct, field: str, most_bytes: int) -> dict[str, Any]:
    """A message as JSON; whole numbers become integers, as JSON text would give them.

    Args:
        message: as the caller sent it.
        field: name of the field in errors.
        most_bytes: of the message.

    Raises:
        ArgosyError: INVALID_FIELD for what is too large or too deep, for numbers that are none and for NUL characters,
            which the database does not take.
    """
    if message.ByteSize() > most_bytes:
        raise invalid_field(field, f"has {message.ByteSize():,} bytes; {most_bytes:,} at most")
    return _fields(message, field, 0)


def _fields(message: struct_pb2.Struct, field: str, depth: int) -> dict[str, Any]:
    if depth > _MOST_DEPTH:
        raise invalid_field(field, f"is nested deeper than {_MOST_DEPTH} levels")
    result: dict[str, Any] = {}
    for key, value in message.fields.items():
        if "\0" in key:
            raise invalid_field(field, "has a key with a NUL character")
        result[key] = _value(value, field, depth)
    return result


def _value(value: struct_pb2.Value, field: str, depth: int) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise invalid_field(field, "has a number that is none")
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
        case "string_value":
            if "\0" in value.string_value:
                raise invalid_field(field, "has a text with a NUL character")
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _fields(value.struct_value, field, depth + 1)
        case "list_value":
            if depth > _MOST_DEPTH:
                raise invalid_field(field, f"is nested deeper than {_MOST_DEPTH} levels")
            return [_value(entry, field, depth + 1) for entry in value.list_value.values]
        case _:
            return None
