"""Follows identity's revocations, so that a token of a revoked key is refused within a second everywhere."""

from __future__ import annotations

import logging

from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc
from google.protobuf import timestamp_pb2

from libs.common.auth.tokens import LEEWAY_SECONDS, TOKEN_SECONDS, TokenVerifier
from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from libs.common.rpc.client import Channels

# Tokens issued longer ago have expired by themselves.
_WINDOW = TOKEN_SECONDS + LEEWAY_SECONDS
_FIRST_PAUSE = 0.1
_MAX_PAUSE = 2.0

_log = logging.getLogger(__name__)


async def follow_revocations(channels: Channels, verifier: TokenVerifier, clock: Clock) -> None:
    """Runs for ever: watches identity, tells the verifier, and begins again when the stream ends.

    Each new stream starts one token life back, so nothing that was revoked while identity was away is missed.
    """
    pause = _FIRST_PAUSE
    while True:
        since = timestamp_pb2.Timestamp()
        oldest = clock.now().timestamp() - _WINDOW
        since.FromNanoseconds(int(oldest * 1e9))
        verifier.forget_revocations_before(oldest)
        try:
            stub = channels.stub(token_service_pb2_grpc.TokenServiceStub, "identity")
            async for revocation in stub.WatchRevocations(token_service_pb2.WatchRevocationsRequest(since=since)):
                pause = _FIRST_PAUSE
                if revocation.name:
                    verifier.revoke(revocation.name, revocation.time.ToNanoseconds() / 1e9)
        except ArgosyError as error:
            _log.info("the stream of revocations ended", extra={"argosy.reason": error.reason})
        await clock.sleep(pause)
        pause = min(pause * 2, _MAX_PAUSE)
