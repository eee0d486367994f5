"""Templates and projects of human work, and what is counted about them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import human_work_pb2 as work_pb
from argosy.dataset.v1 import human_work_service_pb2 as pb
from google.protobuf import json_format

from libs.common.db.mapping import from_proto, timestamp
from libs.common.domain import inherit_secrecy
from libs.common.errors import ArgosyError, invalid_field
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.dataset.domain.forms import BUILT_IN, Form, built_in
from services.dataset.domain.human_work import DEFAULT_LEASE, WANTED_PRECISION, Review, WorkProject, WorkTemplate
from services.dataset.domain.tasks import WORK_REPORT
from services.dataset.domain.versions import DatasetVersion
from services.dataset.handlers.work_messages import form_message, project_message, template_message, to_form
from services.dataset.store.repositories import WorkReports
from services.dataset.store.visible import visible_version
from services.dataset.store.work import WorkItems, WorkProjects, WorkTemplates

if TYPE_CHECKING:
    from services.dataset.app import App

# Other sources are opaque.
_VERSION = re.compile(r"orgs/[a-z0-9-]+/datasets/[a-z0-9-]+/versions/[a-z0-9-]+")
_PLAIN = ("display_name", "description", "currency", "paused", "price_micros")
_PEOPLE = ("annotators", "reviewers", "managers")
_RULES = ("gold_share", "gold_min_accuracy")
_MUTABLE = frozenset({*_PLAIN, *_PEOPLE, *_RULES, "review", "agreement_threshold", "lease_seconds", "labels"})


async def get_work_template(request: pb.GetWorkTemplateRequest, call: Call[App]) -> work_pb.WorkTemplate:
    return template_message(await WorkTemplates(call.uow).get(request.name))


async def list_work_templates(request: pb.ListWorkTemplatesRequest, call: Call[App]) -> pb.ListWorkTemplatesResponse:
    found, position = await WorkTemplates(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListWorkTemplatesResponse(
        work_templates=[template_message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def create_work_template(request: pb.CreateWorkTemplateRequest, call: Call[App]) -> work_pb.WorkTemplate:
    given, now = request.work_template, call.clock.now()
    form = to_form(given.form)
    form.require_sound("work_template.form")
    template = WorkTemplate(
        uid=uuid7(),
        name=f"{request.parent}/workTemplates/{request.work_template_id or resource_id('wt')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        **from_proto(given),
        display_name=given.display_name,
        description=given.description,
        form=form.to_json(),
    )
    await WorkTemplates(call.uow).insert(template)
    return template_message(template)


async def delete_work_template(request: pb.DeleteWorkTemplateRequest, call: Call[App]) -> work_pb.WorkTemplate:
    templates = WorkTemplates(call.uow)
    template = await templates.get(request.name, for_update=True)
    template.require_etag(request.etag)
    await templates.soft_delete(template, call.clock.now())
    return template_message(template)


async def describe_work_templates(
    request: pb.DescribeWorkTemplatesRequest, call: Call[App]
) -> pb.DescribeWorkTemplatesResponse:
    del request, call
    shown = [
        work_pb.WorkTemplate(name=one.name, description=one.description, form=form_message(one.form))
        for one in BUILT_IN
    ]
    return pb.DescribeWorkTemplatesResponse(work_templates=shown)


async def get_work_project(request: pb.GetWorkProjectRequest, call: Call[App]) -> work_pb.WorkProject:
    project = await open_project(call, request.name)
    shown, counts = project_message(project), await WorkItems(call.uow).count(project)
    states = counts.by_state
    shown.progress.CopyFrom(
        work_pb.WorkProgress(
            items=sum(states.values()),
            open=states.get("OPEN", 0),
            in_review=states.get("IN_REVIEW", 0),
            disputed=states.get("DISPUTED", 0),
            accepted=states.get("ACCEPTED", 0),
            gold_items=counts.gold_items,
            answers=counts.answers,
            cost_micros=counts.answers * project.price_micros,
        )
    )
    return shown


async def list_work_projects(request: pb.ListWorkProjectsRequest, call: Call[App]) -> pb.ListWorkProjectsResponse:
    found, position = await WorkProjects(call.uow).list_of(
        request.parent, call.principal, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListWorkProjectsResponse(
        work_projects=[project_message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def create_work_project(request: pb.CreateWorkProjectRequest, call: Call[App]) -> work_pb.WorkProject:
    given, now = request.work_project, call.clock.now()
    standard, parents = from_proto(given), await _source(given.source, call)
    secrecies = [parent.secrecy for parent in parents]
    people: dict[str, Any] = {field: list(getattr(given, field)) for field in _PEOPLE}
    project = WorkProject(
        uid=uuid7(),
        name=f"{request.parent}/workProjects/{request.work_project_id or resource_id('wp')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        **standard | {"secrecy": inherit_secrecy(standard["secrecy"], *secrecies)},
        **{field: getattr(given, field) for field in (*_PLAIN, *_RULES)},
        **people,
        source=given.source,
        form=(await _form(request, call)).to_json(),
        overlap=given.overlap or 1,
        **_defaults(given),
    )
    project.lineage += [parent.as_parent("annotates") for parent in parents]
    project.require_sound()
    await WorkProjects(call.uow).insert(project)
    return project_message(project)


async def _source(name: str, call: Call[App]) -> list[DatasetVersion]:
    """The dataset version that a project is about: what people say about it is as confidential as it is."""
    if not _VERSION.fullmatch(name):
        return []
    _, version = await visible_version(call.uow, name, call.principal)
    return [version]


def _defaults(given: work_pb.WorkProject) -> dict[str, Any]:
    return {
        "review": given.review or Review.DISAGREEMENTS,
        "agreement_threshold": given.agreement_threshold or 1.0,
        "lease_seconds": given.lease_seconds or DEFAULT_LEASE,
    }


async def _form(request: pb.CreateWorkProjectRequest, call: Call[App]) -> Form:
    if not request.template:
        return to_form(request.work_project.form)
    if request.work_project.HasField("form"):
        raise invalid_field("template", "and work_project.form are both given")
    if "/" not in request.template:
        return built_in(request.template)
    return Form.from_json((await WorkTemplates(call.uow).get(request.template)).form)


async def update_work_project(request: pb.UpdateWorkProjectRequest, call: Call[App]) -> work_pb.WorkProject:
    given, projects = request.work_project, WorkProjects(call.uow)
    project = await open_project(call, given.name, for_update=True)
    project.require_manager(call.principal.subject, call.principal.role)
    project.require_etag(given.etag)
    defaults = _defaults(given)
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field in defaults:
            setattr(project, field, defaults[field])
        elif field in _PEOPLE:
            setattr(project, field, list(getattr(given, field)))
        else:
            setattr(project, field, dict(given.labels) if field == "labels" else getattr(given, field))
    project.require_sound()
    project.update_time = call.clock.now()
    await projects.save(project)
    return project_message(project)


async def delete_work_project(request: pb.DeleteWorkProjectRequest, call: Call[App]) -> work_pb.WorkProject:
    project = await open_project(call, request.name, for_update=True)
    project.require_manager(call.principal.subject, call.principal.role)
    project.require_etag(request.etag)
    await WorkProjects(call.uow).soft_delete(project, call.clock.now())
    return project_message(project)


async def report_work(request: pb.ReportWorkRequest, call: Call[App]) -> task_pb2.Task:
    project = await open_project(call, request.name)
    project.require_manager(call.principal.subject, call.principal.role)
    work = {"project": project.name, "wanted_precision": request.wanted_precision or WANTED_PRECISION}
    return await call.deps.tasks.create(call.uow, call.org, WORK_REPORT, project.name, work, call.principal.subject)


async def get_work_report(request: pb.GetWorkReportRequest, call: Call[App]) -> work_pb.WorkReport:
    project = await open_project(call, request.name)
    project.require_reviewer(call.principal.subject, call.principal.role)
    report = await WorkReports(call.uow).find(project.name)
    if report is None:
        message = f"{project.name} has no report yet: ReportWork computes one."
        raise ArgosyError("NOT_FOUND", message, metadata={"name": project.name})
    shown = json_format.ParseDict(report.figures, work_pb.WorkReport(), ignore_unknown_fields=True)
    shown.project, shown.task = report.name, report.task
    shown.report_time.CopyFrom(timestamp(report.update_time))
    return shown


async def open_project(call: Call[App], name: str, *, for_update: bool = False) -> WorkProject:
    """The project, for those who have a part in it. Raises NOT_FOUND."""
    project = await WorkProjects(call.uow).get(name, for_update=for_update)
    project.require_part(call.principal.subject, call.principal.role)
    return project
