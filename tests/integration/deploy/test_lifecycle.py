"""A deployment from its work order to its end, with real Ray and real vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from argosy.common.v1 import options_pb2, task_pb2, task_service_pb2, task_service_pb2_grpc
from argosy.deploy.v1 import deploy_pb2, inference_service_pb2, inference_service_pb2_grpc
from argosy.deploy.v1 import deploy_service_pb2 as pb
from google.protobuf import timestamp_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from deploy.local import nats
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from libs.common.testing.ray import RunningRay, ray_head
from libs.common.testing.service import running_service
from services.deploy.app import DEFINITION
from tests.integration.deploy.peers import VERSION, Caller, FakeAiops, FakeTraining, order_of, put_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
T = TypeVar("T")
DOCS = "orgs/acme/deployments/docs"
TRACE = "1" * 32
SECOND = "orgs/acme/modelProjects/docs/versions/v2"


@pytest.fixture(scope="module")
def ray() -> Iterator[RunningRay]:
    with ray_head() as running:
        yield running


@pytest.fixture
async def aiops(mesh: Mesh) -> AsyncIterator[FakeAiops]:
    """Receives what the replicas tell."""
    aiops, server = FakeAiops(), grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", mesh.certificates("aiops").server_credentials())
    mesh.peers["aiops"] = f"127.0.0.1:{port}"
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(aiops, server)
    await server.start()
    yield aiops
    await server.stop(0)


@pytest.fixture
async def service(
    mesh: Mesh,
    training: FakeTraining,
    database_url: str,
    nats_server: nats.Server,
    ray: RunningRay,
    aiops: FakeAiops,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[RunningService[Any]]:
    """Deploy with its supervisor."""
    for name, value in ray.environment.items():
        monkeypatch.setenv(name, value)
    settings = {"nats_url": nats_server.url(), "ray_address": ray.address, "otlp": mesh.peers["aiops"]}
    async with running_service(DEFINITION, mesh, database_url=database_url, role="all", **settings) as service:
        yield service


async def until(what: str, look: Callable[[], Awaitable[T | None]], seconds: float = 240) -> T:
    """The first true answer of `look`."""
    for _ in range(int(seconds / 0.25)):
        if found := await look():
            return found
        await asyncio.sleep(0.25)
    raise TimeoutError(f"waited {seconds:.0f} s for {what}")


class Watch:
    """A router: follows WatchEndpoints and keeps the newest set."""

    def __init__(self, mesh: Mesh) -> None:
        self._channel = mesh.channel("deploy", "gateway")
        self.newest = pb.EndpointSet()
        self._following = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        watch = self._channel.unary_stream(
            "/argosy.deploy.v1.DeployService/WatchEndpoints",
            request_serializer=pb.WatchEndpointsRequest.SerializeToString,
            response_deserializer=pb.EndpointSet.FromString,
        )
        async for found in watch(pb.WatchEndpointsRequest(), timeout=600):
            assert found.revision >= self.newest.revision
            self.newest = found

    async def address(self) -> str | None:
        return next((address for endpoint in self.newest.endpoints for address in endpoint.addresses), None)

    async def nothing(self) -> bool:
        return not self.newest.endpoints

    async def close(self) -> None:
        self._following.cancel()
        await self._channel.close()


@pytest.fixture
async def watch(mesh: Mesh, service: RunningService[Any]) -> AsyncIterator[Watch]:
    watch = Watch(mesh)
    yield watch
    await watch.close()


async def answer(mesh: Mesh, address: str, audience: str = DOCS, identity: str = "gateway") -> str:
    """What a replica answers to a greedy prompt, and proof that it counts."""
    async with mesh.channel("replica", identity, address=address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = inference_service_pb2.GenerateRequest(
            prompt="the quick", sampling=inference_service_pb2.SamplingParameters(max_tokens=8, temperature=0)
        )
        metadata = mesh.metadata("acme", "users/alice", options_pb2.ROLE_VIEWER, [audience])
        text, last = "", inference_service_pb2.GenerateResponse()
        async for last in stub.Generate(request, timeout=60, metadata=metadata):
            text += last.text
        assert last.usage.completion_tokens == 8
        return text


def processes(pattern: str) -> dict[int, str]:
    """Processes whose title holds the pattern."""
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if pattern in title:
                found[int(folder.name)] = title
    return found


def below(process: int, ancestor: int) -> bool:
    """Whether a process descends from another."""
    while process > 1:
        if process == ancestor:
            return True
        try:
            process = int((Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def replica_processes(ray: RunningRay) -> list[int]:
    """Actors and engines of this test's Ray; those of other tests and people are left alone."""
    session = str(ray.head.folder)
    ours = set(processes(session))
    found = {**processes("ray::ActorHost"), **processes("VLLM::EngineCore")}
    return [process for process in found if any(below(process, raylet) for raylet in ours)]


async def roll_out(alice: Caller, bob: Caller, version: str) -> deploy_pb2.WorkOrder:
    order = await alice.CreateWorkOrder(
        pb.CreateWorkOrderRequest(parent="orgs/acme", work_order=order_of(version, justification="first"))
    )
    return await bob.ApproveWorkOrder(
        pb.ApproveWorkOrderRequest(name=order.name), metadata=(("traceparent", f"00-{TRACE}-{'2' * 16}-01"),)
    )


async def ended(alice: Caller, name: str) -> deploy_pb2.WorkOrder:
    async def look() -> deploy_pb2.WorkOrder | None:
        order = await alice.GetWorkOrder(pb.GetWorkOrderRequest(name=name))
        return order if order.state >= deploy_pb2.WorkOrder.STATE_SUCCEEDED else None

    return await until(f"the end of {name}", look)


async def test_live_killed_live_replaced_stopped(
    alice: Caller,
    bob: Caller,
    mesh: Mesh,
    training: FakeTraining,
    watch: Watch,
    ray: RunningRay,
    aiops: FakeAiops,
    tmp_path: Path,
) -> None:
    digest = await put_model(training.blobs, tmp_path / "v1")
    training.add(VERSION, digest)

    # Live.
    approved = await roll_out(alice, bob, VERSION)
    async with mesh.channel("deploy", "gateway") as channel:
        seen: list[tuple[float, str]] = []
        async for event in task_service_pb2_grpc.TaskServiceStub(channel).WatchTask(
            task_service_pb2.WatchTaskRequest(name=approved.task),
            timeout=240,
            metadata=mesh.metadata("acme", "users/bob", options_pb2.ROLE_VIEWER),
        ):
            if event.HasField("task"):
                seen.append((event.task.progress, event.task.message))
                last = event.task
    assert last.state == task_pb2.Task.STATE_SUCCEEDED  # pyrefly: ignore[unbound-name]
    assert last.result["deployment"] == DOCS
    assert any("loading model" in message for _, message in seen)
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert (await ended(alice, approved.name)).state == deploy_pb2.WorkOrder.STATE_SUCCEEDED
    first = await until("an endpoint", watch.address, 5)
    text = await answer(mesh, first)
    assert watch.newest.endpoints[0].secrecy == training.versions[VERSION].secrecy
    # The trace of the approval goes on in the task, in training's grant and inside Ray.
    assert TRACE in last.traceparent
    assert TRACE in training.traceparents[-1]
    started = await until("the replica's span", lambda: aiops.span("replica.start"), 20)
    assert (started.service, started.trace) == ("replica", TRACE)
    answered = await until("the answer's span", lambda: aiops.span("argosy.deploy.v1.InferenceService/Generate"), 20)
    assert (answered.service, answered.attributes["gen_ai.usage.output_tokens"]) == ("replica", 8)

    # Killed, and live again by itself.
    live_since = timestamp_pb2.Timestamp()
    live_since.GetCurrentTime()
    (actor,) = [p for p in replica_processes(ray) if "ActorHost" in processes("ray::ActorHost").get(p, "")]
    os.kill(actor, signal.SIGKILL)

    async def moved() -> str | None:
        address = await watch.address()
        return address if address is not None and address != first else None

    second = await until("another endpoint", moved, 240)
    assert await answer(mesh, second) == text

    async def live() -> bool:
        deployment = await alice.GetDeployment(pb.GetDeploymentRequest(name=DOCS))
        return (deployment.state, deployment.ready_replicas) == (deploy_pb2.Deployment.STATE_LIVE, 1)

    await until("the deployment to be live", live, 20)
    (replica,) = (await alice.ListReplicas(pb.ListReplicasRequest(parent="orgs/acme", deployment=DOCS))).replicas
    assert replica.restarts == 1

    # A second version takes over when it is ready, not before; the old one goes.
    training.add(SECOND, await put_model(training.blobs, tmp_path / "v2", chat_template="{{ messages[0]['content'] }}"))
    replaced = await roll_out(alice, bob, SECOND)
    assert (await ended(alice, replaced.name)).state == deploy_pb2.WorkOrder.STATE_SUCCEEDED

    async def taken_over() -> bool:
        (endpoint,) = watch.newest.endpoints
        return endpoint.model_version == SECOND and len(endpoint.addresses) == 1 and second not in endpoint.addresses

    await until("the second version", taken_over, 10)

    # Stopped, with nothing left of it.
    stopped = await bob.StopDeployment(pb.StopDeploymentRequest(name=DOCS, reason="done"))
    assert stopped.state == deploy_pb2.Deployment.STATE_STOPPED
    await until("no endpoints", watch.nothing, 2)

    async def nobody() -> bool:
        return not replica_processes(ray)

    await until("no process", nobody, 60)

    # Every step was kept.
    steps = (await alice.ListDeploymentTransitions(pb.ListDeploymentTransitionsRequest(parent=DOCS))).transitions
    states = [step.to_state for step in steps]
    assert states == ["STARTING", "LIVE", "DEGRADED", "LIVE", "LIVE", "STOPPED"]
    assert [step.model_version for step in steps] == [VERSION] * 4 + [SECOND] * 2
    then = await alice.ListLiveAt(pb.ListLiveAtRequest(parent="orgs/acme", time=live_since))
    assert [(step.deployment, step.model_version) for step in then.deployments] == [(DOCS, VERSION)]
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    assert not (await alice.ListLiveAt(pb.ListLiveAtRequest(parent="orgs/acme", time=now))).deployments


async def test_evaluation_replicas_go_with_their_lease(
    mesh: Mesh, service: RunningService[Any], training: FakeTraining, watch: Watch, ray: RunningRay, tmp_path: Path
) -> None:
    # It need not be approved for that.
    training.add(VERSION, await put_model(training.blobs, tmp_path / "v1"), state="STATE_REGISTERED", open=False)
    evaluation = Caller(mesh, "services/eval", options_pb2.ROLE_EDITOR, identity="eval")
    try:
        lease = pb.LeaseReplicaRequest(parent="orgs/acme", model_version=VERSION, holder="e1", ttl_seconds=60)
        leased = await evaluation.LeaseReplica(lease)
        assert leased.state == deploy_pb2.Replica.STATE_STARTING
        assert (await evaluation.LeaseReplica(lease)).name == leased.name

        async def ready() -> deploy_pb2.Replica | None:
            replica = await evaluation.RenewReplica(pb.RenewReplicaRequest(name=leased.name, ttl_seconds=60))
            return replica if replica.state == deploy_pb2.Replica.STATE_READY else None

        replica = await until("the replica", ready)
        assert replica.audience == leased.name
        await answer(mesh, replica.address, leased.name, "eval")
        with pytest.raises(grpc.RpcError):
            await answer(mesh, replica.address, DOCS)
        assert await watch.nothing()

        # Nobody renews it any more.
        await evaluation.RenewReplica(pb.RenewReplicaRequest(name=leased.name, ttl_seconds=1))

        async def nobody() -> bool:
            return not replica_processes(ray)

        await until("no process", nobody, 60)
        with pytest.raises(grpc.RpcError) as gone:
            await evaluation.RenewReplica(pb.RenewReplicaRequest(name=leased.name))
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        released = await evaluation.ReleaseReplica(pb.ReleaseReplicaRequest(name=leased.name))
        assert released.state == deploy_pb2.Replica.STATE_GONE
    finally:
        await evaluation.close()


async def test_a_lost_ray_head_only_interrupts(
    alice: Caller, bob: Caller, mesh: Mesh, training: FakeTraining, watch: Watch, ray: RunningRay, tmp_path: Path
) -> None:
    training.add(VERSION, await put_model(training.blobs, tmp_path / "v1"))
    approved = await roll_out(alice, bob, VERSION)
    assert (await ended(alice, approved.name)).state == deploy_pb2.WorkOrder.STATE_SUCCEEDED
    first = await until("an endpoint", watch.address, 10)
    ray.kill()

    async def unreachable() -> bool:
        return await watch.address() is None

    await until("routers to know", unreachable, 60)
    ray.start()

    async def moved() -> str | None:
        address = await watch.address()
        return address if address != first else None

    await answer(mesh, await until("another endpoint", moved))
    await bob.StopDeployment(pb.StopDeploymentRequest(name=DOCS))

    async def nobody() -> bool:
        return not replica_processes(ray)

    await until("no process", nobody, 60)
