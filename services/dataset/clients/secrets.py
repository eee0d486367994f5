"""Secrets: asked for in the process that uses them, so no task row, spec or argument of Ray has them."""

from __future__ import annotations

from argosy.identity.v1 import identity_service_pb2, identity_service_pb2_grpc

from libs.common.config import CommonSettings
from libs.common.domain import DomainError, invalid
from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels

_SERVICE = "dataset"


async def resolve_secret(name: str, identity: str) -> str:
    """The payload of a secret, for a process that has no channels.

    Args:
        name: `orgs/{org}/secrets/{secret}`.
        identity: `host:port` of the service that has it; it answers whoever shows the certificate of this service.

    Raises:
        DomainError: as `secret_payload`.
    """
    channels = Channels(CommonSettings(peers={"identity": identity}), _SERVICE)
    try:
        return await secret_payload(name, channels)
    finally:
        await channels.close()


async def secret_payload(name: str, channels: Channels) -> str:
    """The payload of a secret.

    Args:
        name: `orgs/{org}/secrets/{secret}`.
        channels: of this service.

    Raises:
        DomainError: NOT_FOUND; PEER_UNAVAILABLE; INVALID_FIELD, it is no text.
    """
    try:
        stub = channels.stub(identity_service_pb2_grpc.IdentityServiceStub, "identity")
        answer = await stub.ResolveSecret(identity_service_pb2.ResolveSecretRequest(name=name))
    except ArgosyError as error:
        raise DomainError(error.reason, error.message, **error.metadata) from None
    try:
        return answer.payload.decode().strip()
    except UnicodeDecodeError:
        raise invalid("secret", "does not hold an address") from None
