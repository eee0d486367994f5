"""What deploy itself says about a deployment that the list of endpoints does not have."""

from __future__ import annotations

from argosy.deploy.v1 import deploy_pb2, deploy_service_pb2, deploy_service_pb2_grpc

from libs.common.errors import ArgosyError
from services.gateway.clients.applications import Metadata
from services.gateway.clients.backends import StubSource
from services.gateway.http.caller import Caller

_GET_SECONDS = 3.0
_SERVING = frozenset(
    {
        deploy_pb2.Deployment.State.STATE_STARTING,
        deploy_pb2.Deployment.State.STATE_LIVE,
        deploy_pb2.Deployment.State.STATE_DEGRADED,
    }
)


class Deployments:
    """The way to deployments.

    Args:
        channels: to deploy.
    """

    def __init__(self, channels: StubSource) -> None:
        self._deploy: deploy_service_pb2_grpc.DeployServiceStub = channels.stub(
            deploy_service_pb2_grpc.DeployServiceStub, "deploy"
        )

    async def serves(self, name: str, caller: Caller, metadata: Metadata) -> bool:
        """Whether a deployment answers, or will in a moment.

        Args:
            name: `orgs/{org}/deployments/{deployment}`.
            caller: in whose name deploy is asked.
            metadata: request id and trace context.
        Raises:
            ArgosyError: PEER_UNAVAILABLE or DEADLINE_EXCEEDED while deploy is away, and nobody knows.
        """
        found = await self.find(name, caller, metadata)
        return found is not None and found.state in _SERVING

    async def find(self, name: str, caller: Caller, metadata: Metadata) -> deploy_pb2.Deployment | None:
        """A deployment, in whatever state; None if there is none. Arguments and errors as for `serves`."""
        request = deploy_service_pb2.GetDeploymentRequest(name=name)
        try:
            return await self._deploy.GetDeployment(
                request, metadata=(caller.authorization, *metadata), timeout=_GET_SECONDS
            )
        except ArgosyError as error:
            if error.is_reason("NOT_FOUND"):
                return None
            raise
