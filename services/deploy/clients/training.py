"""Training: model versions, their gates, and the right to read their files."""

from __future__ import annotations

from dataclasses import dataclass

from argosy.training.v1 import model_service_pb2, model_service_pb2_grpc, training_pb2

from libs.common.domain import Secrecy
from libs.common.rpc.client import Channels, Metadata
from services.deploy.domain.gate import Gate, ModelVersion


@dataclass(frozen=True)
class ModelGrant:
    """The right to read the files of a model version for a while."""

    manifest_digest: str
    grant: str


class Training:
    """The training service, as far as deploy needs it.

    Args:
        channels: ways to other services.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def _stub(self) -> model_service_pb2_grpc.ModelServiceStub:
        return self._channels.stub(model_service_pb2_grpc.ModelServiceStub, "training")

    async def model_version(self, name: str, metadata: Metadata) -> ModelVersion:
        """A model version with the newest decision of each of its gates.

        Args:
            name: resource name.
            metadata: carries the token of whoever may read it.

        Raises:
            ArgosyError: NOT_FOUND, PEER_UNAVAILABLE.
        """
        request = model_service_pb2.GetModelVersionRequest(name=name)
        message = await self._stub().GetModelVersion(request, metadata=metadata)
        return ModelVersion(
            name=message.name,
            state=training_pb2.ModelVersion.State.Name(message.state).removeprefix("STATE_"),
            manifest_digest=message.manifest_digest,
            secrecy=Secrecy(message.secrecy),
            context_length=message.context_length,
            gates=[_gate(gate) for gate in message.gates],
            adapter_of=message.base_model_version if _is_adapter(message) else "",
            task=message.task,
        )

    async def as_deploy(self, org: str) -> Metadata:
        """Metadata of calls that deploy makes for itself inside an organization."""
        return await self._channels.as_service(org)

    async def grant_read(self, name: str, holder: str, seconds: int) -> ModelGrant:
        """Lets a replica read the files of a model version.

        Args:
            name: resource name of the version.
            holder: the replica.
            seconds: life of the grant; the files are read once, at the start.
        """
        request = model_service_pb2.GrantModelReadRequest(name=name, holder=holder, ttl_seconds=seconds)
        answer = await self._stub().GrantModelRead(request)
        return ModelGrant(answer.manifest_digest, answer.grant)


def _is_adapter(message: training_pb2.ModelVersion) -> bool:
    """Whether its files are those of PEFT: matrices to put beside the weights of a base."""
    return any(file.path == "adapter_config.json" for file in message.files)


def _gate(gate: training_pb2.Gate) -> Gate:
    return Gate(
        gate=gate.gate,
        open=gate.open,
        model_digest=gate.model_digest,
        evaluation=gate.evaluation,
        rule=gate.rule,
        reason=gate.reason,
        figures=dict(gate.figures),
    )
