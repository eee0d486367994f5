"""Identity with real PostgreSQL and NATS, its first administrator, and a second service that obeys it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.common.v1 import options_pb2
from argosy.identity.v1 import (
    identity_pb2,
    identity_service_pb2,
    identity_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    usage_service_pb2_grpc,
)

from deploy.local import nats
from libs.common.config import CommonSettings
from libs.common.rpc.client import Channels
from libs.common.service import RunningService
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.identity.app import DEFINITION

BOOTSTRAP = "one-time-token-of-the-test"


class Rig:
    """A running identity and calls of it, as the gateway makes them."""

    def __init__(self, mesh: Mesh, service: RunningService[Any], channels: Channels) -> None:
        self.mesh = mesh
        self.service = service
        self.people = channels.stub(identity_service_pb2_grpc.IdentityServiceStub, "identity")
        self.tokens = channels.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
        self.usage = channels.stub(usage_service_pb2_grpc.UsageServiceStub, "identity")
        self.system: Any = ()

    async def bootstrap(self) -> str:
        """Makes the first administrator; his key."""
        answer = await self.tokens.Bootstrap(token_service_pb2.BootstrapRequest(token=BOOTSTRAP))
        self.system = await self.login(answer.api_key.secret)
        return answer.api_key.secret

    async def exchange(self, key: str) -> token_service_pb2.Token:
        return await self.tokens.ExchangeKey(token_service_pb2.ExchangeKeyRequest(key=key))

    async def login(self, key: str) -> tuple[tuple[str, str], ...]:
        """Metadata of whoever holds the key."""
        return (("authorization", f"Bearer {(await self.exchange(key)).token}"),)

    async def organization(self, org: str) -> None:
        request = identity_service_pb2.CreateOrganizationRequest(
            organization_id=org, organization=identity_pb2.Organization(display_name=org)
        )
        await self.people.CreateOrganization(request, metadata=self.system)

    async def user(self, user: str, role: int, org: str = "acme", **fields: Any) -> identity_pb2.User:
        wanted = identity_pb2.User(role=role, **fields)  # type: ignore[arg-type]
        request = identity_service_pb2.CreateUserRequest(parent=f"orgs/{org}", user_id=user, user=wanted)
        return await self.people.CreateUser(request, metadata=self.system)

    async def key(self, subject: str, metadata: Any = None, **fields: Any) -> identity_pb2.ApiKey:
        wanted = identity_pb2.ApiKey(subject=subject, **fields)
        parent = "/".join(subject.split("/")[:2])
        request = identity_service_pb2.CreateApiKeyRequest(parent=parent, api_key=wanted)
        return await self.people.CreateApiKey(request, metadata=metadata or self.system)


@pytest.fixture
async def bare(tmp_path: Path, database_url: str, nats_server: nats.Server) -> AsyncIterator[Rig]:
    """Identity before its first user."""
    mesh = Mesh(tmp_path)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "bootstrap-token").write_text(BOOTSTRAP)
    async with running_service(DEFINITION, mesh, database_url=database_url, nats_url=nats_server.url()) as service:
        channels = Channels(CommonSettings(peers=mesh.peers, pki_dir=mesh.pki), "gateway")
        yield Rig(mesh, service, channels)
        await channels.close()


@pytest.fixture
async def rig(bare: Rig) -> Rig:
    """Identity with a system administrator, the organization acme, an administrator and an editor in it."""
    await bare.bootstrap()
    await bare.organization("acme")
    await bare.user("ada", options_pb2.ROLE_ADMIN)
    await bare.user("bob", options_pb2.ROLE_EDITOR)
    return bare
