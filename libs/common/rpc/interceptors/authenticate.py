"""Who calls: the service by its certificate, the principal by its token."""

from __future__ import annotations

from argosy.common.v1 import options_pb2

from libs.common.auth.principal import Principal
from libs.common.auth.tokens import TokenVerifier
from libs.common.errors import ArgosyError
from libs.common.rpc.method import Exchange, Host, Method, Step

_SCHEME = "Bearer "


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Sets `call.principal`.

    A token is demanded for ACCESS_ROLE, honoured for ACCESS_PEER and not read for ACCESS_PUBLIC.
    """
    policy = method.policy
    demanded = policy.access == options_pb2.ACCESS_ROLE
    if demanded and host.verifier is None:
        raise RuntimeError(f"{policy.path} asks for a role, and the server has no token verifier")
    public = policy.access == options_pb2.ACCESS_PUBLIC
    # TLS has refused whoever shows no certificate of the mesh. Reading which one it is costs as much as all other
    # stages of a read together, so it happens where the answer matters.
    asks_for_peer = not demanded or bool(policy.peers)

    async def authenticate(exchange: Exchange) -> bytes | None:
        peer = exchange.peer if asks_for_peer else ""
        if asks_for_peer and not peer:
            raise ArgosyError("PEER_NOT_ALLOWED", "The certificate is not one of this mesh.", metadata={"peer": ""})
        header = "" if public else exchange.text("authorization")
        if header and host.verifier is not None:
            principal = await _verified(host.verifier, header)
            exchange.call.principal = principal.through(peer) if peer else principal
        elif demanded:
            raise ArgosyError("TOKEN_MISSING", "The call carries no token.")
        else:
            exchange.call.principal = Principal(subject="" if public else f"services/{peer}", peer=peer)
        return await step(exchange)

    return authenticate


async def _verified(verifier: TokenVerifier, header: str) -> Principal:
    if not header.startswith(_SCHEME):
        raise ArgosyError("TOKEN_INVALID", "The token is not valid.")
    token = header[len(_SCHEME) :]
    return verifier.cached(token) or await verifier.verify(token)
