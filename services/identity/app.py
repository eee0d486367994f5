"""Composition root of identity: the only place that wires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from argosy.identity.v1 import identity_service_pb2, quota_service_pb2, token_service_pb2, usage_service_pb2

from libs.common.auth.tokens import TOKEN_SECONDS, mint
from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.ids import uuid7
from libs.common.secrets import Keyring
from libs.common.service import Runtime, ServiceDefinition
from services.identity.config import IdentitySettings
from services.identity.handlers import (
    api_keys,
    departments,
    organizations,
    quota_ledger,
    quotas,
    secrets,
    service_accounts,
    tokens,
    usage,
    users,
)
from services.identity.store.announcements import Announcements
from services.identity.store.key_hashes import KeyHasher
from services.identity.store.refusals import refuse_revoked
from services.identity.store.signing import Signer


@dataclass
class App:
    """What the handlers of identity work with."""

    database: Database
    keyring: Keyring
    signer: Signer
    hasher: KeyHasher
    revoked: Announcements
    clock: Clock
    bootstrap_token_path: Path

    def bootstrap_token(self) -> str:
        """The one-time token; empty when there is none."""
        try:
            return self.bootstrap_token_path.read_text().strip()
        except FileNotFoundError:
            return ""

    async def jwks(self) -> Sequence[dict[str, str]]:
        """The public keys, for the verifier of this process."""
        return [key.jwk() for key in await self.signer.published()]

    async def issue(self, org: str, subject: str, role: int, audience: tuple[str, ...]) -> tuple[str, float]:
        """A token for identity's own background work, and its end in UNIX seconds."""
        now = self.clock.now().timestamp()
        token = mint(
            await self.signer.current(),
            org=org,
            subject=subject or "services/identity",
            role=role,
            audience=audience or tokens.SERVICES,
            now=now,
            token_id=uuid7(),
        )
        return token, now + TOKEN_SECONDS


async def build(runtime: Runtime) -> App:
    settings: IdentitySettings = runtime.settings
    keyring = Keyring.create_file(settings.key_path)
    # The answers of Bootstrap and CreateApiKey hold a key, which must not lie open beside its hash.
    runtime.database.seal_answers(keyring)
    revoked = Announcements(runtime.database, runtime.clock)
    runtime.background.start(revoked.run(), name="revocation bell")
    refusals = refuse_revoked(runtime.database, revoked, runtime.verifier, runtime.clock)
    runtime.background.start(refusals, name="refusals")
    return App(
        database=runtime.database,
        keyring=keyring,
        signer=Signer(runtime.database, keyring, runtime.clock),
        hasher=KeyHasher(),
        revoked=revoked,
        clock=runtime.clock,
        bootstrap_token_path=settings.bootstrap_token_path,
    )


DEFINITION = ServiceDefinition[App](
    name="identity",
    settings=IdentitySettings,
    build=build,
    protos=[
        identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"],
        token_service_pb2.DESCRIPTOR.services_by_name["TokenService"],
        usage_service_pb2.DESCRIPTOR.services_by_name["UsageService"],
        quota_service_pb2.DESCRIPTOR.services_by_name["QuotaService"],
    ],
    handlers=[
        organizations,
        departments,
        users,
        service_accounts,
        api_keys,
        secrets,
        tokens,
        usage,
        quotas,
        quota_ledger,
    ],
    migrations=Path(__file__).parent / "migrations",
    jwks=App.jwks,
    token_source=lambda app: app.issue,
)
