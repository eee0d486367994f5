"""Services of a mesh that are played by servicers on the wire, with mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.errors import STATUS_DETAILS_KEY, ArgosyError, to_status
from libs.common.testing.mesh import Mesh

Add = Callable[[grpc.aio.Server], None]


async def fail(context: Any, error: ArgosyError) -> None:
    """Ends a call as a service of Argosy does."""
    details = to_status(error).SerializeToString()
    await context.abort(error.code, error.message, ((STATUS_DETAILS_KEY, details),))


class Identity(token_service_pb2_grpc.TokenServiceServicer):
    """Publishes the keys of the mesh, issues tokens, and knows one API key an organization: `ak_<org>`."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.issued: list[token_service_pb2.IssueTokenRequest] = []

    async def GetJwks(self, request: Any, context: Any) -> token_service_pb2.GetJwksResponse:
        return token_service_pb2.GetJwksResponse(keys=[token_service_pb2.Jwk(**key) for key in await self.mesh.jwks()])

    async def WatchRevocations(self, request: Any, context: Any) -> AsyncGenerator[token_service_pb2.Revocation]:
        await asyncio.Event().wait()
        yield token_service_pb2.Revocation()

    async def IssueToken(self, request: Any, context: Any) -> token_service_pb2.Token:
        self.issued.append(request)
        return self._token(request.org.removeprefix("orgs/"), request.audience)

    async def ExchangeKey(self, request: Any, context: Any) -> token_service_pb2.Token:
        if not request.key.startswith("ak_"):
            await fail(context, ArgosyError("TOKEN_INVALID", "The key is not valid."))
        return self._token(request.key.removeprefix("ak_"), request.audience)

    def _token(self, org: str, audience: Any) -> token_service_pb2.Token:
        given: dict[str, Any] = {"audience": list(audience)} if audience else {}
        token = token_service_pb2.Token(
            token=self.mesh.token(org, role=options_pb2.ROLE_EDITOR, **given), org=f"orgs/{org}"
        )
        token.expire_time.FromSeconds(int(self.mesh.clock.now().timestamp()) + 300)
        return token


@asynccontextmanager
async def served(mesh: Mesh, servers: dict[str, Add]) -> AsyncGenerator[dict[str, str]]:
    """Starts a server for each name, with the certificate of that name; their addresses, which the mesh knows too."""
    async with AsyncExitStack() as stack:
        addresses: dict[str, str] = {}
        for name, add in servers.items():
            server = grpc.aio.server()
            add(server)
            port = server.add_secure_port("127.0.0.1:0", mesh.certificates(name).server_credentials())
            await server.start()
            stack.push_async_callback(server.stop, None)
            addresses[name] = mesh.peers[name] = f"127.0.0.1:{port}"
        yield addresses
