"""What evaluation asks of, and tells, the model layer."""

from __future__ import annotations

from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1.model_service_pb2_grpc import ModelServiceStub

from libs.common.rpc.client import Channels, Metadata


class TrainingClient:
    """Model versions and their gates."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub(ModelServiceStub, "training")

    async def model_version(self, name: str, metadata: Metadata) -> training_pb2.ModelVersion:
        """A model version as the caller may see it. Raises NOT_FOUND."""
        return await self._stub.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=name), metadata=metadata)

    async def record_gate(self, name: str, gate: training_pb2.Gate, traceparent: str) -> None:
        """Writes a verdict; the same evaluation again changes nothing."""
        metadata = [("traceparent", traceparent)] if traceparent else []
        # One evaluation decides a gate once, so its name makes the call the same however often it is sent.
        request_id = gate.evaluation.replace("/", "-")[-64:]
        request = model_service_pb2.RecordGateRequest(name=name, gate=gate, request_id=request_id)
        await self._stub.RecordGate(request, metadata=metadata)
