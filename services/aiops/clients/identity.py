"""Whose key it is, for telemetry from outside the mesh."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from argosy.identity.v1 import token_service_pb2
from argosy.identity.v1.token_service_pb2_grpc import TokenServiceStub

from libs.common.clock import Clock
from libs.common.ids import org_of
from libs.common.rpc.client import Channels

# Exporters send every few seconds; a key that was revoked is refused after this at the latest.
_KEPT_SECONDS = 1.0
_REMEMBERED = 1000


class Keys:
    """Organizations of API keys, remembered for a moment."""

    def __init__(self, channels: Channels, clock: Clock) -> None:
        self._stub = channels.stub(TokenServiceStub, "identity")
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    async def org_of_key(self, key: str) -> str:
        """Organization id. Raises ArgosyError: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED, PEER_UNAVAILABLE."""
        digest = hashlib.sha256(key.encode()).digest()
        org, until = self._known.get(digest, ("", 0.0))
        if self._clock.monotonic() < until:
            return org
        request = token_service_pb2.ExchangeKeyRequest(key=key[:256], audience=["aiops"])
        token = await self._stub.ExchangeKey(request)
        org = org_of(token.org)
        self._known[digest] = (org, self._clock.monotonic() + _KEPT_SECONDS)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return org
