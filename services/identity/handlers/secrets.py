"""Secrets: written, never read back but by the service that uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.identity.v1 import identity_pb2
from argosy.identity.v1 import identity_service_pb2 as pb

from libs.common.db.mapping import from_proto, to_proto
from libs.common.domain import DomainError
from libs.common.ids import org_of, resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from services.identity.domain.secrets import Secret
from services.identity.store.repositories import Organizations, Secrets

if TYPE_CHECKING:
    from services.identity.app import App

_MUTABLE = frozenset({"display_name", "payload", "labels"})


def message(secret: Secret) -> identity_pb2.Secret:
    return to_proto(
        secret, identity_pb2.Secret(display_name=secret.display_name, payload_version=secret.payload_version)
    )


def _sealed(payload: bytes, name: str, call: Call[App]) -> bytes:
    if not payload:
        raise DomainError("INVALID_FIELD", "secret.payload: must not be empty", field="secret.payload")
    return call.deps.keyring.seal(payload, _aad(name))


def _aad(name: str) -> bytes:
    """A sealed payload opens only in its own row."""
    return f"identity/secrets/{name}".encode()


async def get_secret(request: pb.GetSecretRequest, call: Call[App]) -> identity_pb2.Secret:
    return message(await Secrets(call.uow).get(request.name))


async def list_secrets(request: pb.ListSecretsRequest, call: Call[App]) -> pb.ListSecretsResponse:
    found, position = await Secrets(call.uow).list(
        request.parent, page_size(request.page_size), PageToken.decode(request), request.show_deleted
    )
    return pb.ListSecretsResponse(
        secrets=[message(s) for s in found], next_page_token=PageToken.encode(request, position)
    )


async def create_secret(request: pb.CreateSecretRequest, call: Call[App]) -> identity_pb2.Secret:
    now = call.clock.now()
    await Organizations(call.uow).get(f"orgs/{org_of(request.parent)}")
    secret = Secret(
        uid=uuid7(),
        name=f"{request.parent}/secrets/{request.secret_id or resource_id('secret')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        display_name=request.secret.display_name,
        **from_proto(request.secret),
    )
    secret.replace_payload(_sealed(request.secret.payload, secret.name, call))
    await Secrets(call.uow).insert(secret)
    call.uow.emit("identity.secret.created", secret)
    return message(secret)


async def update_secret(request: pb.UpdateSecretRequest, call: Call[App]) -> identity_pb2.Secret:
    repository = Secrets(call.uow)
    secret = await repository.get(request.secret.name)
    secret.require_etag(request.secret.etag)
    for field in fields_to_change(request.secret, request.update_mask, _MUTABLE):
        if field == "payload":
            secret.replace_payload(_sealed(request.secret.payload, secret.name, call))
        elif field == "labels":
            secret.labels = dict(request.secret.labels)
        else:
            secret.display_name = request.secret.display_name
    secret.update_time = call.clock.now()
    await repository.save(secret)
    call.uow.emit("identity.secret.updated", secret)
    return message(secret)


async def delete_secret(request: pb.DeleteSecretRequest, call: Call[App]) -> identity_pb2.Secret:
    repository = Secrets(call.uow)
    secret = await repository.get(request.name)
    secret.require_etag(request.etag)
    await repository.soft_delete(secret, call.clock.now())
    call.uow.emit("identity.secret.deleted", secret)
    return message(secret)


async def undelete_secret(request: pb.UndeleteSecretRequest, call: Call[App]) -> identity_pb2.Secret:
    repository = Secrets(call.uow)
    secret = await repository.get(request.name, deleted=True)
    secret.require_etag(request.etag)
    await repository.undelete(secret, call.clock.now())
    call.uow.emit("identity.secret.undeleted", secret)
    return message(secret)


async def resolve_secret(request: pb.ResolveSecretRequest, call: Call[App]) -> pb.ResolveSecretResponse:
    secret = await Secrets(call.uow).get(request.name)
    payload = call.deps.keyring.open(secret.sealed, _aad(secret.name))
    return pb.ResolveSecretResponse(payload=payload, payload_version=secret.payload_version)
