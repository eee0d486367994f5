"""What evaluation asks of the data layer."""

from __future__ import annotations

from argosy.dataset.v1 import dataset_pb2, dataset_service_pb2
from argosy.dataset.v1.dataset_service_pb2_grpc import DatasetServiceStub

from libs.common.rpc.client import Channels, Metadata

# Longer than the longest evaluation: workers read by it until the rows are in memory.
_GRANT_SECONDS = 6 * 3600


class DatasetClient:
    """Dataset versions."""

    def __init__(self, channels: Channels) -> None:
        self._stub = channels.stub(DatasetServiceStub, "dataset")

    async def version(self, name: str, metadata: Metadata) -> dataset_pb2.DatasetVersion:
        """A version as the caller may see it. Raises NOT_FOUND."""
        return await self._stub.GetDatasetVersion(
            dataset_service_pb2.GetDatasetVersionRequest(name=name), metadata=metadata
        )

    async def grant(self, name: str, holder: str) -> dict[str, str]:
        """`{name, manifest, grant}` for an engine that reads the rows itself."""
        request = dataset_service_pb2.GrantReadRequest(name=name, holder=holder, ttl_seconds=_GRANT_SECONDS)
        granted = await self._stub.GrantRead(request)
        return {"name": name, "manifest": granted.manifest_digest, "grant": granted.grant}
