"""Every service of the mesh in one process, with real databases and a real identity, and a call to any of its RPCs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
from argosy.common.v1 import options_pb2
from argosy.deploy.v1 import inference_service_pb2
from argosy.identity.v1 import (
    identity_pb2,
    identity_service_pb2,
    identity_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

import services.aiops.app
import services.app.app
import services.dataset.app
import services.deploy.app
import services.eval.app
import services.gateway.app
import services.identity.app
import services.training.app
from libs.common.aio import Background
from libs.common.auth.policy import MethodPolicy
from libs.common.errors import ArgosyError, from_rpc_error
from libs.common.rpc.method import Method
from libs.common.service import RunningService, ServiceDefinition
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.deploy.engines import replica_server
from services.deploy.engines.serving import Serving
from services.deploy.engines.text_engine import Piece, TextEngine
from tests.contract import protos

REPLICA = "replica"
REPLICA_AUDIENCE = "orgs/acme/deployments/llm"
BOOTSTRAP = "bootstrap-" + secrets.token_hex(16)
_EVERYWHERE = ("argosy.common.v1.EventService", "argosy.common.v1.TaskService")
# Identity first: the others ask it for keys and revocations.
_DEFINITIONS: tuple[ServiceDefinition[Any], ...] = (
    services.identity.app.DEFINITION,
    services.dataset.app.DEFINITION,
    services.training.app.DEFINITION,
    services.deploy.app.DEFINITION,
    services.eval.app.DEFINITION,
    services.app.app.DEFINITION,
    services.aiops.app.DEFINITION,
)
_TIMEOUT = 20.0
# A stream that has nothing to say yet has let its caller in.
_STREAM_TIMEOUT = 2.0

Metadata = tuple[tuple[str, str], ...]


class _Silent:
    """An engine that has nothing to say."""

    load = SimpleNamespace(running=0, waiting=0, generated_tokens=0, kv_cache_usage=0.0)

    async def generate(self, request: Message) -> AsyncGenerator[Piece]:
        return
        yield


@dataclass(frozen=True)
class Rpc:
    """One RPC of one running service."""

    service: str
    descriptor: MethodDescriptor
    method: Method

    @property
    def policy(self) -> MethodPolicy:
        return self.method.policy

    @property
    def audience(self) -> str:
        """What a token must carry here."""
        return REPLICA_AUDIENCE if self.service == REPLICA else self.service

    def __str__(self) -> str:
        return f"{self.service}{self.policy.path}"


@dataclass
class World:
    """The mesh and what its tests share."""

    mesh: Mesh
    stack: AsyncExitStack
    services: dict[str, RunningService[Any]] = field(default_factory=dict)
    rpcs: list[Rpc] = field(default_factory=list)
    # Of the first administrator, and of a user of acme.
    system_key: str = ""
    user_key: str = ""
    user_key_name: str = ""
    _channels: dict[tuple[str, str | None], grpc.aio.Channel] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.mesh.folder

    async def start(self, database: Callable[[str], Awaitable[str]], nats_url: str) -> None:
        """Starts everything. `database` makes an empty database and gives its URL."""
        (self.folder / "secrets").mkdir()
        (self.folder / "secrets" / "bootstrap-token").write_text(BOOTSTRAP)
        for definition in _DEFINITIONS:
            url = await database(definition.name) if definition.migrations is not None else ""
            blobs = f"file://{self.folder}/blobs/{definition.name}"
            service = await self.stack.enter_async_context(
                running_service(definition, self.mesh, database_url=url, nats_url=nats_url, blob_root=blobs)
            )
            self.services[definition.name] = service
            if definition.name == "identity":
                # The tests sign with identity's own key, so that services verify their tokens as they do any other.
                assert service.app is not None
                self.mesh.signing_key = await service.app.signer.current()
        await self._start_replica()
        self.rpcs = [rpc for method in protos.methods() for rpc in self._served(method)]
        await self._people()

    async def start_gateway(self) -> str:
        """The gateway's base URL."""
        definition = services.gateway.app.DEFINITION
        running = running_service(definition, self.mesh, http_listen="127.0.0.1:0")
        gateway = self.services["gateway"] = await self.stack.enter_async_context(running)
        assert gateway.app is not None
        return f"http://127.0.0.1:{gateway.app.http.port}"

    async def _start_replica(self) -> None:
        """The real port of a replica, with nothing behind it."""
        spec: Any = SimpleNamespace(
            pki_dir=str(self.mesh.pki),
            peers=dict(self.mesh.peers),
            scratch=str(self.folder / "replica" / "r1"),
            audience=REPLICA_AUDIENCE,
            host="127.0.0.1",
            max_concurrency=16,
        )
        serving = Serving(cast(TextEngine, _Silent()), REPLICA_AUDIENCE, "orgs/acme/modelProjects/m/versions/1")
        background = await self.stack.enter_async_context(Background("replica"))
        server = await replica_server.open_server(spec, serving, background)
        self.stack.push_async_callback(server.raw.stop, 0)
        self.mesh.peers[REPLICA] = f"127.0.0.1:{server.port}"

    def _served(self, descriptor: MethodDescriptor) -> list[Rpc]:
        """The RPC, once for each service that has it."""
        method = Method.of(descriptor)
        if descriptor.containing_service is inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"]:
            return [Rpc(REPLICA, descriptor, method)]
        found: list[Rpc] = []
        for definition in _DEFINITIONS:
            mounted = {service.full_name for service in definition.protos}
            if definition.migrations is not None:
                mounted.add(_EVERYWHERE[0])
            if definition.task_kinds is not None:
                mounted.add(_EVERYWHERE[1])
            if method.service in mounted:
                found.append(Rpc(definition.name, descriptor, method))
        return found

    async def _people(self) -> None:
        """From the bootstrap token to a user of acme with a key, by identity's own RPCs."""
        channel = self.channel("identity", "gateway")
        tokens = token_service_pb2_grpc.TokenServiceStub(channel)
        identity = identity_service_pb2_grpc.IdentityServiceStub(channel)
        first = await tokens.Bootstrap(
            token_service_pb2.BootstrapRequest(token=BOOTSTRAP, request_id="bootstrap-1"), timeout=_TIMEOUT
        )
        self.system_key = first.api_key.secret
        metadata = bearer((await self.exchange(self.system_key)).token)
        for org in ("acme", "rival"):
            request = identity_service_pb2.CreateOrganizationRequest(
                organization_id=org, organization=identity_pb2.Organization()
            )
            await identity.CreateOrganization(request, metadata=metadata, timeout=_TIMEOUT)
        user = identity_pb2.User(role=options_pb2.ROLE_EDITOR)
        user = await identity.CreateUser(
            identity_service_pb2.CreateUserRequest(parent="orgs/acme", user_id="alice", user=user),
            metadata=metadata,
            timeout=_TIMEOUT,
        )
        wanted = identity_pb2.ApiKey(subject=user.name)
        key = await identity.CreateApiKey(
            identity_service_pb2.CreateApiKeyRequest(parent="orgs/acme", api_key=wanted, request_id="alice-key-1"),
            metadata=metadata,
            timeout=_TIMEOUT,
        )
        self.user_key, self.user_key_name = key.secret, key.name

    async def exchange(self, key: str, *audience: str) -> token_service_pb2.Token:
        """A token for a key."""
        stub = token_service_pb2_grpc.TokenServiceStub(self.channel("identity", "gateway"))
        return await stub.ExchangeKey(
            token_service_pb2.ExchangeKeyRequest(key=key, audience=audience), timeout=_TIMEOUT
        )

    def channel(self, service: str, identity: str | None) -> grpc.aio.Channel:
        """A channel to a service with the certificate of `identity`, kept for the next call."""
        known = self._channels.get((service, identity))
        if known is None:
            known = self._channels[service, identity] = self.mesh.channel(service, identity)
            self.stack.push_async_callback(known.close)
        return known

    async def ask(
        self, rpc: Rpc, identity: str | None, metadata: Metadata, request: Message
    ) -> tuple[str, grpc.StatusCode]:
        """Reason and code of the answer; ("", OK) when there was one. Of a stream, the first message counts."""
        channel, body = self.channel(rpc.service, identity), request.SerializeToString()
        try:
            if rpc.policy.streams:
                call = channel.unary_stream(rpc.policy.path)(body, metadata=metadata, timeout=_STREAM_TIMEOUT)
                try:
                    # Reading EOF does not raise; asking for the code then tells how the stream ended.
                    if await call.read() is grpc.aio.EOF and await call.code() is not grpc.StatusCode.OK:
                        raise grpc.aio.AioRpcError(
                            await call.code(),
                            await call.initial_metadata(),
                            await call.trailing_metadata(),
                            await call.details(),
                        )
                finally:
                    call.cancel()
            else:
                await channel.unary_unary(rpc.policy.path)(body, metadata=metadata, timeout=_TIMEOUT)
        except grpc.RpcError as failure:
            error: ArgosyError = from_rpc_error(failure, rpc.service)
            return error.reason, error.code
        return "", grpc.StatusCode.OK


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)
