"""Work orders over the wire: gate, second person, tenants, decisions."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from argosy.common.v1 import options_pb2, resource_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.deploy.v1 import deploy_pb2
from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from tests.integration.deploy.peers import VERSION, Caller, FakeTraining, order_of

pytestmark = pytest.mark.timeout(60)
DIGEST = "a" * 64


async def refusal(call: Any) -> ArgosyError:
    """The error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value, "deploy")


def ask(order: deploy_pb2.WorkOrder, order_id: str = "") -> pb.CreateWorkOrderRequest:
    return pb.CreateWorkOrderRequest(parent="orgs/acme", work_order_id=order_id, work_order=order)


async def test_an_order_keeps_configuration_and_evidence(alice: Caller, training: FakeTraining) -> None:
    training.add(VERSION, DIGEST)
    config = await alice.CreateDeploymentConfig(
        pb.CreateDeploymentConfigRequest(
            parent="orgs/acme",
            deployment_config_id="small",
            deployment_config=deploy_pb2.DeploymentConfig(spec=deploy_pb2.DeploymentSpec(cpus=2)),
        )
    )
    order = await alice.CreateWorkOrder(
        ask(deploy_pb2.WorkOrder(model_version=VERSION, deployment_id="docs", deployment_config=config.name))
    )
    changed = deploy_pb2.DeploymentConfig(name=config.name, etag=config.etag, spec=deploy_pb2.DeploymentSpec(cpus=8))
    await alice.UpdateDeploymentConfig(pb.UpdateDeploymentConfigRequest(deployment_config=changed))

    again = await alice.GetWorkOrder(pb.GetWorkOrderRequest(name=order.name))
    assert again.state == deploy_pb2.WorkOrder.STATE_PENDING
    assert again.spec.cpus == 2
    assert (again.spec.replicas, again.spec.max_concurrency, again.spec.runtime) == (1, 32, "vllm")
    assert again.model_digest == DIGEST
    assert again.evidence_evaluation == "orgs/acme/evaluations/e1"
    assert again.evidence_figures["lower"] == 0.4
    assert again.secrecy == resource_pb2.SECRECY_CONFIDENTIAL
    assert [parent.relation for parent in again.lineage.parents] == ["deploys", "gated_by", "configured_by"]


@pytest.mark.parametrize(
    ("state", "gate", "why"),
    [
        ("STATE_REJECTED", {"open": False, "reason": "too weak"}, "too weak"),
        ("STATE_REGISTERED", {}, "the version is REGISTERED"),
        ("STATE_APPROVED", {"model_digest": "b" * 64}, "the gate judged other files than those of this version"),
    ],
)
async def test_a_shut_gate_refuses(
    alice: Caller, training: FakeTraining, state: str, gate: dict[str, Any], why: str
) -> None:
    training.add(VERSION, DIGEST, state=state, **gate)
    error = await refusal(alice.CreateWorkOrder(ask(order_of())))
    assert error.reason == "GATE_SHUT"
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.metadata == {"model_version": VERSION, "gate": "release", "reason": why}
    assert not (await alice.ListWorkOrders(pb.ListWorkOrdersRequest(parent="orgs/acme"))).work_orders


async def test_an_adapter_is_refused_with_its_base(alice: Caller, mesh: Mesh, training: FakeTraining) -> None:
    """Its gate may be open; without its base it answers nothing."""
    training.add(VERSION, DIGEST)
    training.make_adapter(VERSION, "orgs/acme/modelProjects/docs/versions/base")
    lease = pb.LeaseReplicaRequest(parent="orgs/acme", model_version=VERSION, holder="e1", ttl_seconds=60)
    evaluator = Caller(mesh, "services/eval", options_pb2.ROLE_EDITOR, identity="eval")
    for call in (alice.CreateWorkOrder(ask(order_of())), evaluator.LeaseReplica(lease)):
        error = await refusal(call)
        assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "adapter")
        assert "is an adapter for orgs/acme/modelProjects/docs/versions/base" in error.message
    await evaluator.close()


async def test_what_writes_no_text_is_refused_by_its_task(alice: Caller, mesh: Mesh, training: FakeTraining) -> None:
    evaluator = Caller(mesh, "services/eval", options_pb2.ROLE_EDITOR, identity="eval")
    lease = pb.LeaseReplicaRequest(parent="orgs/acme", model_version=VERSION, holder="e1", ttl_seconds=60)
    for task in ("reward", "classification"):
        training.add(VERSION, DIGEST)
        training.versions[VERSION].task = task
        for call in (alice.CreateWorkOrder(ask(order_of())), evaluator.LeaseReplica(lease)):
            error = await refusal(call)
            assert (error.reason, error.metadata["check"], error.metadata["detail"]) == (
                "PREFLIGHT_FAILED",
                "task",
                task,
            )
            assert f"{VERSION} is a model for {task}; only models for text-generation can be served." in error.message
    training.versions[VERSION].task = "text-generation"
    assert (await alice.CreateWorkOrder(ask(order_of()))).model_version == VERSION
    await evaluator.close()


async def test_only_a_second_person_approves(
    alice: Caller, bob: Caller, mesh: Mesh, training: FakeTraining, service: RunningService[Any]
) -> None:
    training.add(VERSION, DIGEST)
    order = await alice.CreateWorkOrder(ask(order_of()))
    own = await refusal(alice.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name)))
    assert own.reason == "SELF_APPROVAL"
    stale = await refusal(bob.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name, etag="other")))
    assert stale.reason == "ETAG_MISMATCH"
    approved = await bob.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name, etag=order.etag, reason="fine"))
    assert approved.state == deploy_pb2.WorkOrder.STATE_APPROVED
    assert (approved.decider, approved.decide_reason) == ("users/bob", "fine")
    assert approved.deployment == "orgs/acme/deployments/docs"
    twice = await refusal(bob.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name)))
    assert twice.reason == "STATE_CONFLICT"
    async with mesh.channel("deploy", "gateway") as channel:
        task = await task_service_pb2_grpc.TaskServiceStub(channel).GetTask(
            task_service_pb2.GetTaskRequest(name=approved.task),
            timeout=10,
            metadata=mesh.metadata("acme", "users/bob", options_pb2.ROLE_VIEWER),
        )
    assert (task.kind, task.target) == ("deploy.rollout", order.name)


async def test_a_rejected_order_stays_rejected(alice: Caller, bob: Caller, training: FakeTraining) -> None:
    training.add(VERSION, DIGEST)
    order = await alice.CreateWorkOrder(ask(order_of()))
    rejected = await bob.RejectWorkOrder(pb.RejectWorkOrderRequest(name=order.name, reason="not now"))
    assert rejected.state == deploy_pb2.WorkOrder.STATE_REJECTED
    error = await refusal(bob.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name)))
    assert error.reason == "STATE_CONFLICT"


async def test_another_organization_sees_nothing(
    alice: Caller, mesh: Mesh, training: FakeTraining, service: RunningService[Any]
) -> None:
    training.add(VERSION, DIGEST)
    order = await alice.CreateWorkOrder(ask(order_of()))
    eve = Caller(mesh, "users/eve", options_pb2.ROLE_ADMIN, org="evil")
    try:
        for call in (
            eve.GetWorkOrder(pb.GetWorkOrderRequest(name=order.name)),
            eve.ApproveWorkOrder(pb.ApproveWorkOrderRequest(name=order.name)),
            eve.ListWorkOrders(pb.ListWorkOrdersRequest(parent="orgs/acme")),
            eve.StopDeployment(pb.StopDeploymentRequest(name="orgs/acme/deployments/docs")),
            # Its own organization, but somebody else's model.
            eve.CreateWorkOrder(pb.CreateWorkOrderRequest(parent="orgs/evil", work_order=order_of())),
        ):
            assert (await refusal(call)).reason == "NOT_FOUND"
    finally:
        await eve.close()


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (order_of("nonsense"), "work_order.model_version"),
        (order_of(deployment=""), "work_order.deployment_id"),
        (order_of(deployment_config="x"), "work_order.deployment_config"),
        (order_of(deployment_config="orgs/acme/deploymentConfigs/c"), "work_order.spec"),
        (order_of(spec=deploy_pb2.DeploymentSpec(cpus=float("nan"))), "work_order.spec.cpus"),
    ],
)
async def test_bad_orders_name_their_field(
    alice: Caller, training: FakeTraining, order: deploy_pb2.WorkOrder, field: str
) -> None:
    training.add(VERSION, DIGEST)
    error = await refusal(alice.CreateWorkOrder(ask(order)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.metadata["field"] or error.metadata["field"] in field


async def test_the_same_request_gives_the_same_order(alice: Caller, training: FakeTraining) -> None:
    training.add(VERSION, DIGEST)
    request = ask(order_of())
    request.request_id = "once"
    first = await alice.CreateWorkOrder(request)
    assert await alice.CreateWorkOrder(request) == first
    assert len((await alice.ListWorkOrders(pb.ListWorkOrdersRequest(parent="orgs/acme"))).work_orders) == 1


async def test_endpoints_come_at_once_and_only_for_routers(alice: Caller, mesh: Mesh) -> None:
    async with mesh.channel("deploy", "gateway") as channel:
        watch = channel.unary_stream(
            "/argosy.deploy.v1.DeployService/WatchEndpoints",
            request_serializer=pb.WatchEndpointsRequest.SerializeToString,
            response_deserializer=pb.EndpointSet.FromString,
        )(pb.WatchEndpointsRequest(), timeout=10)
        first = await watch.read()
        assert (first.revision, list(first.endpoints)) == (1, [])  # pyrefly: ignore[missing-attribute]
        watch.cancel()
    async with mesh.channel("deploy", "eval") as channel:
        watch = channel.unary_stream(
            "/argosy.deploy.v1.DeployService/WatchEndpoints",
            request_serializer=pb.WatchEndpointsRequest.SerializeToString,
            response_deserializer=pb.EndpointSet.FromString,
        )(pb.WatchEndpointsRequest(), timeout=10)
        assert (await refusal(watch.read())).reason == "PEER_NOT_ALLOWED"
