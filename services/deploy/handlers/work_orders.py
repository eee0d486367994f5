"""Work orders: asked for by one person, decided by another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.deploy.v1 import deploy_events_pb2, deploy_pb2
from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.db.mapping import from_proto
from libs.common.db.uow import UnitOfWork
from libs.common.domain import DomainError, Parent, Secrecy, inherit_secrecy
from libs.common.ids import NamePattern, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.deploy.domain.gate import ModelVersion, evidence
from services.deploy.domain.spec import Spec
from services.deploy.domain.work_order import ROLLOUT_TASK, WorkOrder
from services.deploy.handlers.messages import spec_from_message, work_order_to_message
from services.deploy.store.repositories import DeploymentConfigs, WorkOrders

if TYPE_CHECKING:
    from services.deploy.app import App

_MODEL_VERSION = NamePattern("orgs/{org}/modelProjects/{model_project}/versions/{version}")
_CONFIG = NamePattern("orgs/{org}/deploymentConfigs/{deployment_config}")


async def get_work_order(request: pb.GetWorkOrderRequest, call: Call[App]) -> deploy_pb2.WorkOrder:
    return work_order_to_message(await WorkOrders(call.uow).get(request.name))


async def list_work_orders(request: pb.ListWorkOrdersRequest, call: Call[App]) -> pb.ListWorkOrdersResponse:
    found, position = await WorkOrders(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListWorkOrdersResponse(
        work_orders=[work_order_to_message(order) for order in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_work_order(request: pb.CreateWorkOrderRequest, call: Call[App]) -> deploy_pb2.WorkOrder:
    """Reads the gate from training in this very call: what was true a minute ago does not count."""
    wanted, now = request.work_order, call.clock.now()
    _require_own(_MODEL_VERSION, wanted.model_version, request.parent, "work_order.model_version")
    if not wanted.deployment_id:
        raise DomainError("INVALID_FIELD", "work_order.deployment_id: is missing", field="work_order.deployment_id")
    model = await call.deps.training.model_version(wanted.model_version, call.forward())
    model.require_servable()
    gate = evidence(model)
    spec, config_secrecy = await _spec(call.uow, wanted, request.parent)
    given = from_proto(wanted)
    order = WorkOrder(
        uid=uuid7(),
        name=f"{request.parent}/workOrders/{request.work_order_id or resource_id('order')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=given["labels"],
        secrecy=inherit_secrecy(given["secrecy"], model.secrecy, config_secrecy),
        lineage=_lineage(model, gate.evaluation, wanted.deployment_config),
        deployment_config=wanted.deployment_config,
        spec=spec,
        model_version=model.name,
        model_digest=model.manifest_digest,
        deployment_id=wanted.deployment_id,
        evidence_evaluation=gate.evaluation,
        evidence_rule=gate.rule,
        evidence_figures=dict(gate.figures),
        justification=wanted.justification,
    )
    order.submit(now)
    await WorkOrders(call.uow).insert(order)
    call.uow.emit("deploy.work_order.created", order)
    return work_order_to_message(order)


async def approve_work_order(request: pb.ApproveWorkOrderRequest, call: Call[App]) -> deploy_pb2.WorkOrder:
    repository = WorkOrders(call.uow)
    order = await repository.get(request.name, for_update=True)
    order.require_etag(request.etag)
    order.approve(call.principal.subject, request.reason, call.clock.now())
    task = await call.deps.tasks.create(
        call.uow, order.org, ROLLOUT_TASK, order.name, {"work_order": order.name}, call.principal.subject
    )
    order.task, order.task_uid = task.name, task.uid
    await repository.save(order)
    _emit_decided(call.uow, order, approved=True)
    return work_order_to_message(order)


async def reject_work_order(request: pb.RejectWorkOrderRequest, call: Call[App]) -> deploy_pb2.WorkOrder:
    repository = WorkOrders(call.uow)
    order = await repository.get(request.name, for_update=True)
    order.require_etag(request.etag)
    order.reject(call.principal.subject, request.reason, call.clock.now())
    await repository.save(order)
    _emit_decided(call.uow, order, approved=False)
    return work_order_to_message(order)


def _emit_decided(uow: UnitOfWork, order: WorkOrder, *, approved: bool) -> None:
    payload = deploy_events_pb2.WorkOrderDecided(work_order=order.name, approved=approved, decider=order.decider)
    uow.emit("deploy.work_order.decided", order, payload)


async def _spec(uow: UnitOfWork, wanted: deploy_pb2.WorkOrder, parent: str) -> tuple[Spec, Secrecy]:
    """A snapshot of the configuration, or the spec that the order brings itself."""
    if not wanted.deployment_config:
        return spec_from_message(wanted.spec), Secrecy.UNSPECIFIED
    _require_own(_CONFIG, wanted.deployment_config, parent, "work_order.deployment_config")
    if wanted.HasField("spec"):
        message = "work_order.spec: give either a deployment_config or a spec"
        raise DomainError("INVALID_FIELD", message, field="work_order.spec")
    config = await DeploymentConfigs(uow).get(wanted.deployment_config)
    return config.spec, config.secrecy


def _require_own(pattern: NamePattern, name: str, parent: str, field: str) -> None:
    """Raises INVALID_FIELD for a malformed name, NOT_FOUND for one of another organization."""
    if f"orgs/{pattern.parse(name, field)['org']}" != parent:
        raise DomainError("NOT_FOUND", f"{name} does not exist.", name=name)


def _lineage(model: ModelVersion, evaluation: str, config: str) -> list[Parent]:
    parents = [Parent(model.name, model.manifest_digest, "deploys")]
    if evaluation:
        parents.append(Parent(evaluation, "", "gated_by"))
    if config:
        parents.append(Parent(config, "", "configured_by"))
    return parents
