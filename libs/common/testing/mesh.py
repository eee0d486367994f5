"""A small mesh for tests: a certificate authority, a signing key, tokens and channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from argosy.common.v1 import options_pb2

from libs.common.auth.tokens import SigningKey, mint
from libs.common.clock import SYSTEM_CLOCK, Clock
from libs.common.ids import uuid7
from libs.common.pki import OPERATOR, Certificates, LocalCa, server_name
from libs.common.rpc.server import MAX_MESSAGE_BYTES

SERVICES = ("identity", "dataset", "training", "deploy", "eval", "app", "aiops", "gateway")


class Mesh:
    """Trust for tests, in a folder of their own.

    Args:
        folder: gets `pki/` with a certificate for every service, `replica` and the operator.
        clock: gives the times of certificates and tokens.
    """

    def __init__(self, folder: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self.folder = folder
        self.pki = folder / "pki"
        self.clock = clock
        self.peers: dict[str, str] = {}
        self.signing_key = SigningKey.generate()
        self.ca = LocalCa(self.pki, now=clock.now)
        self.ca.create()
        for name in (*SERVICES, "replica", OPERATOR):
            self.ca.issue(name)

    def certificates(self, name: str) -> Certificates:
        """The certificate of a service or of the operator."""
        return Certificates(self.pki, name)

    async def jwks(self) -> Sequence[dict[str, str]]:
        """The public keys, as identity would give them."""
        return [self.signing_key.jwk()]

    def token(
        self,
        org: str = "acme",
        subject: str = "users/alice",
        role: int = options_pb2.ROLE_EDITOR,
        audience: Sequence[str] = SERVICES,
        **claims: Any,
    ) -> str:
        """A valid token; `claims` are further arguments of `mint`, such as `ttl` and `api_key`."""
        now = self.clock.now().timestamp()
        usual: dict[str, Any] = {
            "org": org,
            "subject": subject,
            "role": role,
            "audience": audience,
            "now": now,
            "token_id": uuid7(),
        }
        return mint(self.signing_key, **usual | claims)

    def metadata(self, *args: Any, **claims: Any) -> tuple[tuple[str, str], ...]:
        """Call metadata with a token; arguments as for `token`."""
        return (("authorization", f"Bearer {self.token(*args, **claims)}"),)

    def channel(self, service: str, identity: str | None = OPERATOR, *, address: str = "") -> grpc.aio.Channel:
        """A bare channel to a service, with nothing of Argosy's client in it.

        Args:
            service: whose certificate must answer; its address is in `peers`.
            identity: whose certificate to show; None shows none.
            address: `host:port` instead of the one in `peers`.
        """
        pair = self.certificates(identity).current if identity is not None else None
        credentials = grpc.ssl_channel_credentials(
            self.ca.certificate, pair.key if pair else None, pair.certificate if pair else None
        )
        options = (
            ("grpc.ssl_target_name_override", server_name(service)),
            # Tests that show different certificates must not share a connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        )
        return grpc.aio.secure_channel(address or self.peers[service], credentials, options)
