"""Deployments and what was in production when."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from argosy.deploy.v1 import deploy_pb2
from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.domain import DomainError
from libs.common.ids import org_of
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.deploy.handlers.messages import deployment_to_message, transition_to_message
from services.deploy.store.announcements import emit_stopped, endpoints_changed
from services.deploy.store.repositories import Deployments, Transitions, WorkOrders

if TYPE_CHECKING:
    from services.deploy.app import App


async def get_deployment(request: pb.GetDeploymentRequest, call: Call[App]) -> deploy_pb2.Deployment:
    return deployment_to_message(await Deployments(call.uow).get(request.name))


async def list_deployments(request: pb.ListDeploymentsRequest, call: Call[App]) -> pb.ListDeploymentsResponse:
    found, position = await Deployments(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListDeploymentsResponse(
        deployments=[deployment_to_message(deployment) for deployment in found],
        next_page_token=PageToken.encode(request, position),
    )


async def stop_deployment(request: pb.StopDeploymentRequest, call: Call[App]) -> deploy_pb2.Deployment:
    """Nobody is routed to it from now on; the supervisor then takes its replicas away."""
    repository, now, actor = Deployments(call.uow), call.clock.now(), call.principal.subject
    deployment = await repository.get(request.name, for_update=True)
    rolling_out = deployment.target
    if not deployment.stop(request.reason, actor, now):
        return deployment_to_message(deployment)
    await repository.save(deployment)
    if rolling_out is not None:
        orders = WorkOrders(call.uow)
        order = await orders.get(rolling_out.work_order, for_update=True)
        if not order.ended:
            order.cancel(actor, request.reason or "the deployment was stopped", now)
            await orders.save(order)
    await endpoints_changed(call.uow)
    emit_stopped(call.uow, deployment)
    return deployment_to_message(deployment)


async def list_deployment_transitions(
    request: pb.ListDeploymentTransitionsRequest, call: Call[App]
) -> pb.ListDeploymentTransitionsResponse:
    await Deployments(call.uow).get(request.parent, deleted=True)
    steps, position = await Transitions(call.uow).of(
        request.parent, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListDeploymentTransitionsResponse(
        transitions=[transition_to_message(step) for step in steps],
        next_page_token=PageToken.encode(request, position),
    )


async def list_live_at(request: pb.ListLiveAtRequest, call: Call[App]) -> pb.ListLiveAtResponse:
    try:
        moment = request.time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise DomainError("INVALID_FIELD", "time: is out of range", field="time") from None
    steps, position = await Transitions(call.uow).live_at(
        org_of(request.parent), moment, page_size(request.page_size), PageToken.decode(request)
    )
    return pb.ListLiveAtResponse(
        deployments=[transition_to_message(step) for step in steps],
        next_page_token=PageToken.encode(request, position),
    )
