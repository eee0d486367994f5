"""API keys: created once, shown once, revoked within a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, timestamp, to_proto
from libs.common.domain import DomainError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.keys import ApiKey, new_key_id, new_key_text
from services.identity.domain.people import require_grantable_role, require_same_org
from services.identity.store.repositories import ApiKeys, Revocations, subject_named

if TYPE_CHECKING:
    from datetime import datetime

    from libs.common.db.uow import UnitOfWork
    from services.identity.app import App


def message(key: ApiKey, secret: str = "") -> identity_pb2.ApiKey:
    shown = identity_pb2.ApiKey(
        display_name=key.display_name,
        subject=key.subject,
        prefix=key.prefix,
        secret=secret,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
    )
    for field in ("expire_time", "revoke_time"):
        moment: datetime | None = getattr(key, field)
        if moment is not None:
            getattr(shown, field).CopyFrom(timestamp(moment))
    return to_proto(key, shown)


async def make_key(
    uow: UnitOfWork, deps: App, now: datetime, name: str, wanted: identity_pb2.ApiKey, creator: str
) -> tuple[ApiKey, str]:
    """Stores a new key for `wanted.subject`; the key and its text, which nobody can read again."""
    key_id = new_key_id()
    text = new_key_text(key_id)
    key = ApiKey(
        uid=uuid7(),
        name=name,
        create_time=now,
        update_time=now,
        creator=creator,
        display_name=wanted.display_name,
        subject=wanted.subject,
        key_id=key_id,
        key_hash=await deps.hasher.hash(text),
        expire_time=_future(wanted, now),
        requests_per_minute=wanted.requests_per_minute,
        tokens_per_minute=wanted.tokens_per_minute,
        **from_proto(wanted),
    )
    await ApiKeys(uow).insert(key)
    uow.emit("identity.api_key.created", key)
    return key, text


def _future(wanted: identity_pb2.ApiKey, now: datetime) -> datetime | None:
    if not wanted.HasField("expire_time"):
        return None
    expire_time = wanted.expire_time.ToDatetime(tzinfo=now.tzinfo)
    if expire_time <= now:
        message = "api_key.expire_time: must lie in the future"
        raise DomainError("INVALID_FIELD", message, field="api_key.expire_time")
    return expire_time


async def get_api_key(request: pb.GetApiKeyRequest, call: Call[App]) -> identity_pb2.ApiKey:
    return message(await ApiKeys(call.uow).get(request.name))


async def list_api_keys(request: pb.ListApiKeysRequest, call: Call[App]) -> pb.ListApiKeysResponse:
    found, position = await ApiKeys(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListApiKeysResponse(
        api_keys=[message(k) for k in found], next_page_token=PageToken.encode(request, position)
    )


async def create_api_key(request: pb.CreateApiKeyRequest, call: Call[App]) -> identity_pb2.ApiKey:
    wanted = request.api_key
    name = f"{request.parent}/apiKeys/{request.api_key_id or resource_id('key')}"
    require_same_org(name, wanted.subject, "api_key.subject")
    subject = await subject_named(call.uow, wanted.subject)
    if subject is None:
        raise DomainError("INVALID_FIELD", "api_key.subject: there is no such account", field="api_key.subject")
    require_grantable_role(subject.role, call.principal.role, subject.org)
    key, text = await make_key(call.uow, call.deps, call.clock.now(), name, wanted, call.principal.subject)
    return message(key, text)


async def revoke_api_key(request: pb.RevokeApiKeyRequest, call: Call[App]) -> identity_pb2.ApiKey:
    repository = ApiKeys(call.uow)
    key = await repository.get(request.name)
    now = call.clock.now()
    if key.revoke(now):
        key.update_time = now
        await repository.save(key)
        await Revocations(call.uow).add(key.org, key.name, now)
        call.uow.emit("identity.api_key.revoked", key)
    return message(key)
