"""The evaluation replica of a model version: leased from deploy, asked directly, given back.

Runs inside the engine, by the ways that `libs.compute.mesh` gives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, inference_service_pb2
from argosy.deploy.v1.deploy_service_pb2_grpc import DeployServiceStub
from argosy.deploy.v1.inference_service_pb2_grpc import InferenceServiceStub
from argosy.training.v1 import model_service_pb2
from argosy.training.v1.model_service_pb2_grpc import ModelServiceStub

from libs.common.aio import Background
from libs.common.errors import ArgosyError
from libs.common.ids import org_of
from libs.common.rpc.client import Channels

# A lease outlives a restart of this engine by minutes, and a dead one's replica is gone soon after.
_LEASE_SECONDS = 300
_RENEW_SECONDS = 60.0
_BEAT_SECONDS = 0.5
# An engine that loads a large model from a slow store takes this long at most.
_START_SECONDS = 900.0
_REPLICA = "replica"
# Two batches of the engine in flight.
_CONCURRENCY = 256


class ReplicaLost(Exception):
    """The replica failed or its lease was lost; the evaluation can be tried again."""


class Replica:
    """A ready replica."""

    def __init__(self, channels: Channels, found: deploy_pb2.Replica) -> None:
        self._channels = channels
        self._stub = channels.stub(InferenceServiceStub, _REPLICA, address=found.address)
        self._org = org_of(found.name)
        self._audience = found.audience
        self.context_length = found.context_length

    async def generate(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy answers to prompts, in their order.

        Raises:
            ReplicaLost: it went away meanwhile.
            ArgosyError: it refused.
        """
        request = inference_service_pb2.GenerateRequest(
            prompts=prompts,
            sampling=inference_service_pb2.SamplingParameters(max_tokens=max_tokens, temperature=0.0, stop=["\n"]),
        )
        metadata = await self._channels.as_service(self._org, audience=[self._audience])
        answers = [""] * len(prompts)
        try:
            async for part in self._stub.Generate(request, metadata=metadata):
                answers[part.index] += part.text
        except ArgosyError as error:
            if error.is_reason("PEER_UNAVAILABLE", "REPLICA_UNAVAILABLE", "DRAINING"):
                raise ReplicaLost("the evaluation replica went away while it answered") from error
            raise
        return answers


async def tokenizer_file(channels: Channels, model_version: str) -> bytes:
    """tokenizer.json of a model version."""
    stub = channels.stub(ModelServiceStub, "training")
    metadata = await channels.as_service(org_of(model_version))
    request = model_service_pb2.DownloadModelFileRequest(name=model_version, path="tokenizer.json")
    return b"".join([part.data async for part in stub.DownloadModelFile(request, metadata=metadata)])


@asynccontextmanager
async def leased_replica(channels: Channels, model_version: str, holder: str) -> AsyncGenerator[Replica]:
    """Brings up a replica, keeps its lease while it is used, and gives it back.

    Args:
        channels: ways of the service eval.
        model_version: to serve.
        holder: the evaluation; asking again for the same one gives the same replica.

    Raises:
        ReplicaLost: it failed to start, or its lease was lost.
    """
    stub = channels.stub(DeployServiceStub, "deploy")
    request = deploy_service_pb2.LeaseReplicaRequest(
        parent=f"orgs/{org_of(model_version)}",
        model_version=model_version,
        holder=holder,
        # Nobody else asks it, so it takes all that comes at once.
        spec=deploy_pb2.DeploymentSpec(max_concurrency=_CONCURRENCY),
        ttl_seconds=_LEASE_SECONDS,
    )
    found = await stub.LeaseReplica(request)
    try:
        found = await _ready(stub, found)
        async with Background("lease") as background:
            background.start(_keep(stub, found.name), name="renewal")
            yield Replica(channels, found)
    finally:
        with suppress(ArgosyError):  # a lease that cannot be given back runs out
            await stub.ReleaseReplica(deploy_service_pb2.ReleaseReplicaRequest(name=found.name))


async def _renew(stub: DeployServiceStub, name: str) -> deploy_pb2.Replica:
    request = deploy_service_pb2.RenewReplicaRequest(name=name, ttl_seconds=_LEASE_SECONDS)
    try:
        found = await stub.RenewReplica(request)
    except ArgosyError as error:
        if error.is_reason("NOT_FOUND"):
            raise ReplicaLost("the lease of the evaluation replica was lost") from None
        raise
    if found.state in (deploy_pb2.Replica.STATE_FAILED, deploy_pb2.Replica.STATE_GONE):
        raise ReplicaLost(f"the evaluation replica failed: {found.message or 'it is gone'}")
    return found


async def _ready(stub: DeployServiceStub, found: deploy_pb2.Replica) -> deploy_pb2.Replica:
    try:
        async with asyncio.timeout(_START_SECONDS):
            while found.state != deploy_pb2.Replica.STATE_READY:
                await asyncio.sleep(_BEAT_SECONDS)
                found = await _renew(stub, found.name)
    except TimeoutError:
        raise ReplicaLost(f"the evaluation replica was not ready within {_START_SECONDS:.0f} s") from None
    return found


async def _keep(stub: DeployServiceStub, name: str) -> None:
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        with suppress(ArgosyError, ReplicaLost):  # the next generation says what is wrong
            await _renew(stub, name)
