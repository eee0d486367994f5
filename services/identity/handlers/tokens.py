"""Keys become short tokens; services verify those without asking."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import token_service_pb2 as pb

from libs.common.auth.principal import Principal
from libs.common.auth.tokens import LEEWAY_SECONDS, TOKEN_SECONDS, mint
from libs.common.db.mapping import timestamp
from libs.common.domain import DomainError
from libs.common.ids import org_of, uuid7
from libs.common.rpc.call import Call
from services.identity.domain.keys import parse_key
from services.identity.domain.people import ROLE_SYSTEM, SYSTEM_ORG, Organization, Subject, User
from services.identity.handlers import api_keys, users
from services.identity.store.repositories import (
    ApiKeys,
    Organizations,
    Revocations,
    Users,
    spend_bootstrap,
    subject_named,
)

if TYPE_CHECKING:
    from services.identity.app import App

# Who accepts a token that names nobody: every service. A replica never does; it wants its deployment.
SERVICES = ("identity", "dataset", "training", "deploy", "eval", "app", "aiops", "gateway")
# What a service may do on its own inside an organization that it works for.
_SERVICE_ROLE = 2
_UNKNOWN_KEY = "the API key is unknown: check that it was copied whole"
# A stream says something at least this often, so that both sides notice when the other is gone.
_HEARTBEAT_SECONDS = 5.0
_TOKEN_LIFE = timedelta(seconds=TOKEN_SECONDS + LEEWAY_SECONDS)


async def bootstrap(request: pb.BootstrapRequest, call: Call[App]) -> pb.BootstrapResponse:
    expected = call.deps.bootstrap_token()
    if not expected or not hmac.compare_digest(expected.encode(), request.token.encode()):
        raise DomainError("TOKEN_INVALID", "the bootstrap token is wrong")
    now = call.clock.now()
    digest = hashlib.sha256(expected.encode()).hexdigest()
    if not await spend_bootstrap(call.uow, digest, now):
        raise DomainError("TOKEN_INVALID", "the bootstrap token was spent: log in with the key that it gave")
    organizations = Organizations(call.uow)
    if await organizations.find(f"orgs/{SYSTEM_ORG}") is None:
        system = Organization(
            uid=uuid7(), name=f"orgs/{SYSTEM_ORG}", create_time=now, update_time=now, display_name="System"
        )
        await organizations.insert(system)
        call.uow.emit("identity.organization.created", system)
    user = User(
        uid=uuid7(),
        name=f"orgs/{SYSTEM_ORG}/users/{request.user_id or 'admin'}",
        create_time=now,
        update_time=now,
        creator="bootstrap",
        display_name=request.display_name,
        role=ROLE_SYSTEM,
    )
    await Users(call.uow).insert(user)
    call.uow.emit("identity.user.created", user)
    wanted = identity_pb2.ApiKey(display_name="bootstrap", subject=user.name)
    name = f"orgs/{SYSTEM_ORG}/apiKeys/bootstrap-{user.id}"
    key, text = await api_keys.make_key(call.uow, call.deps, now, name, wanted, "bootstrap")
    return pb.BootstrapResponse(user=users.message(user), api_key=api_keys.message(key, text))


async def exchange_key(request: pb.ExchangeKeyRequest, call: Call[App]) -> pb.Token:
    presented = parse_key(request.key)
    now = call.clock.now()
    async with call.deps.database.system(read_only=True) as uow:
        key = await ApiKeys(uow).with_key_id(presented.key_id)
        if key is None:
            raise DomainError("TOKEN_INVALID", _UNKNOWN_KEY)
        subject = await subject_named(uow, key.subject)
        organization = await Organizations(uow).find(f"orgs/{key.org}")
    if not await call.deps.hasher.matches(presented.text, key.key_hash):
        raise DomainError("TOKEN_INVALID", _UNKNOWN_KEY)
    key.require_usable(now)
    if subject is None or organization is None:
        raise DomainError("TOKEN_REVOKED", "the account behind this key is gone: ask an administrator")
    subject.require_active()
    token = await _token(call, now, organization, subject, request.audience, api_key=key.name)
    token.requests_per_minute = key.requests_per_minute
    token.tokens_per_minute = key.tokens_per_minute
    return token


async def issue_token(request: pb.IssueTokenRequest, call: Call[App]) -> pb.Token:
    org, now = org_of(request.org), call.clock.now()
    async with call.deps.database.system(read_only=True) as uow:
        organization = await Organizations(uow).get(request.org)
        subject = None
        if request.subject and not request.subject.startswith("services/"):
            subject = await subject_named(uow, f"orgs/{org}/{request.subject}")
            if subject is None:
                raise DomainError("NOT_FOUND", f"{request.subject} does not exist.", name=request.subject)
    if subject is not None:
        subject.require_active()
        return await _token(call, now, organization, subject, request.audience, role=request.role)
    service = _as_service(org, call.principal)
    return await _token(call, now, organization, service, request.audience, role=min(request.role or 9, _SERVICE_ROLE))


def _as_service(org: str, principal: Principal) -> Principal:
    return Principal(org=org, subject=f"services/{principal.peer}", role=_SERVICE_ROLE)


async def _token(
    call: Call[App],
    now: datetime,
    organization: Organization,
    subject: Subject | Principal,
    audience: Sequence[str],
    *,
    role: int = 0,
    api_key: str = "",
) -> pb.Token:
    """A token for a subject; `role` lowers what the subject may do, never raises it.

    `now` is from before the subject was read: what is revoked after that has a later time than the token.
    """
    short = subject.subject if isinstance(subject, Principal) else subject.name.split("/", 2)[2]
    granted = min(role, subject.role) if role else subject.role
    department = subject.department if isinstance(subject, User) else ""
    text = mint(
        await call.deps.signer.current(),
        org=organization.id,
        subject=short,
        role=granted,
        audience=audience or SERVICES,
        now=now.timestamp(),
        token_id=uuid7(),
        api_key=api_key,
        record_content=organization.record_content,
        department=department,
    )
    return pb.Token(
        token=text,
        expire_time=timestamp(now + timedelta(seconds=TOKEN_SECONDS)),
        org=organization.name,
        subject=short,
        role=granted,  # type: ignore[arg-type]
        api_key=api_key,
        record_content=organization.record_content,
        department=department,
    )


async def get_jwks(request: pb.GetJwksRequest, call: Call[App]) -> pb.GetJwksResponse:
    return pb.GetJwksResponse(keys=[pb.Jwk(**key.jwk()) for key in await call.deps.signer.published()])


async def watch_revocations(request: pb.WatchRevocationsRequest, call: Call[App]) -> AsyncIterator[pb.Revocation]:
    """Revocations within the life of a token, then each new one; an empty message each few seconds."""
    since = call.clock.now() - _TOKEN_LIFE
    if request.HasField("since"):
        since = max(since, request.since.ToDatetime(tzinfo=UTC))
    last = 0
    while True:
        ring = call.deps.revoked.next_ring
        for number, name, time in await _revoked_since(call, since, last):
            last = number
            yield pb.Revocation(name=name, time=timestamp(time))
        yield pb.Revocation()
        while not await call.deps.revoked.wait(ring, _HEARTBEAT_SECONDS):
            yield pb.Revocation()


async def _revoked_since(call: Call[App], since: datetime, last: int) -> list[tuple[int, str, datetime]]:
    async with call.deps.database.system(read_only=True) as uow:
        return await Revocations(uow).since(since, last)
