"""Where deployments are reached."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from argosy.deploy.v1 import deploy_service_pb2 as pb

from libs.common.rpc.call import Call
from services.deploy.handlers.messages import endpoint_to_message

if TYPE_CHECKING:
    from services.deploy.app import App


async def watch_endpoints(request: pb.WatchEndpointsRequest, call: Call[App]) -> AsyncGenerator[pb.EndpointSet]:
    """Holds no transaction: all streams of this process share one reader of the database."""
    del request
    async with aclosing(call.deps.endpoints.watch()) as sets:
        async for found in sets:
            yield pb.EndpointSet(
                revision=found.revision, endpoints=[endpoint_to_message(endpoint) for endpoint in found.endpoints]
            )
