"""Entities of deploy to their messages and back."""

from __future__ import annotations

from argosy.deploy.v1 import deploy_pb2

from libs.common.db.mapping import timestamp, to_proto
from services.deploy.domain.deployment import Deployment
from services.deploy.domain.deployment_config import DeploymentConfig
from services.deploy.domain.endpoint import Endpoint
from services.deploy.domain.replica import Replica
from services.deploy.domain.spec import Spec
from services.deploy.domain.transitions import Transition
from services.deploy.domain.work_order import WorkOrder

_SPEC_FIELDS = tuple(Spec.__dataclass_fields__)


def spec_from_message(message: deploy_pb2.DeploymentSpec) -> Spec:
    """The spec with its defaults filled in. Raises INVALID_FIELD."""
    return Spec(**{name: getattr(message, name) for name in _SPEC_FIELDS}).completed()


def spec_to_message(spec: Spec) -> deploy_pb2.DeploymentSpec:
    return deploy_pb2.DeploymentSpec(**{name: getattr(spec, name) for name in _SPEC_FIELDS})


def config_to_message(config: DeploymentConfig) -> deploy_pb2.DeploymentConfig:
    message = deploy_pb2.DeploymentConfig(
        display_name=config.display_name, description=config.description, spec=spec_to_message(config.spec)
    )
    return to_proto(config, message)


def work_order_to_message(order: WorkOrder) -> deploy_pb2.WorkOrder:
    message = deploy_pb2.WorkOrder(
        deployment_config=order.deployment_config,
        spec=spec_to_message(order.spec),
        model_version=order.model_version,
        model_digest=order.model_digest,
        deployment_id=order.deployment_id,
        evidence_evaluation=order.evidence_evaluation,
        evidence_rule=order.evidence_rule,
        evidence_figures=order.evidence_figures,
        decider=order.decider,
        decide_reason=order.decide_reason,
        task=order.task,
        deployment=order.deployment,
        failure=order.failure,
        justification=order.justification,
    )
    if order.decide_time is not None:
        message.decide_time.CopyFrom(timestamp(order.decide_time))
    return to_proto(order, message)


def deployment_to_message(deployment: Deployment) -> deploy_pb2.Deployment:
    message = deploy_pb2.Deployment(ready_replicas=deployment.ready_replicas)
    revision = deployment.shown
    if revision is not None:
        message.model_version = revision.model_version
        message.model_digest = revision.model_digest
        message.work_order = revision.work_order
        message.spec.CopyFrom(spec_to_message(revision.spec))
    if deployment.live_time is not None:
        message.live_time.CopyFrom(timestamp(deployment.live_time))
    return to_proto(deployment, message)


def replica_to_message(replica: Replica) -> deploy_pb2.Replica:
    message = deploy_pb2.Replica(
        deployment=replica.deployment,
        model_version=replica.model_version,
        address=replica.address,
        audience=replica.audience,
        message=replica.message,
        restarts=replica.restarts,
        context_length=replica.context_length,
    )
    if replica.lease_expire_time is not None:
        message.lease_expire_time.CopyFrom(timestamp(replica.lease_expire_time))
    return to_proto(replica, message)


def transition_to_message(step: Transition) -> deploy_pb2.DeploymentTransition:
    return deploy_pb2.DeploymentTransition(
        deployment=step.resource,
        model_version=step.model_version,
        from_state=step.from_state,
        to_state=step.to_state,
        actor=step.actor,
        time=timestamp(step.time),
        work_order=step.work_order,
        reason=step.reason,
    )


def endpoint_to_message(endpoint: Endpoint) -> deploy_pb2.Endpoint:
    message = deploy_pb2.Endpoint(
        deployment=endpoint.deployment,
        model_version=endpoint.model_version,
        model_digest=endpoint.model_digest,
        audience=endpoint.audience,
        addresses=endpoint.addresses,
        context_length=endpoint.context_length,
        max_concurrency=endpoint.max_concurrency,
        secrecy=int(endpoint.secrecy),  # type: ignore[arg-type]
    )
    if endpoint.live_time is not None:
        message.live_time.CopyFrom(timestamp(endpoint.live_time))
    return message
