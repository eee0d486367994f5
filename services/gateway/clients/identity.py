"""Keys and tokens: who a request comes from, without asking identity again for each.

A key is exchanged for a token once and the answer kept under the key's SHA-256, until shortly before the token ends.
identity streams what it revokes, so that a key is refused within a second although it is cached here.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict

from argosy.identity.v1 import token_service_pb2, token_service_pb2_grpc

from libs.common.auth.principal import Principal
from libs.common.auth.tokens import TokenVerifier
from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from services.gateway.clients.backends import StubSource
from services.gateway.domain.buckets import Bucket, Budget
from services.gateway.http.caller import Caller

# A token is asked for anew this long before its end, and used up to a moment before it: services refuse one that has
# expired.
_REFRESH_SECONDS = 60.0
_MARGIN_SECONDS = 5.0
# A key that identity refused is not worth another argon2 right away.
_REFUSED_SECONDS = 5.0
# How many keys and tokens are remembered. A caller that falls out is looked up again.
_CALLERS = 10_000
_KEY_PREFIX = b"ak_"
_KEY_BYTES = 256
_TOKEN_BYTES = 8192
_EXCHANGE_SECONDS = 10.0


class Keys:
    """The authenticator of the door.

    Args:
        channels: ways to the services.
        verifier: checks JWTs offline.
        clock: tells when tokens end.
        requests_per_minute: allowance of a key that names none.
        tokens_per_minute: likewise.
    """

    def __init__(
        self,
        channels: StubSource,
        verifier: TokenVerifier,
        clock: Clock,
        *,
        requests_per_minute: int,
        tokens_per_minute: int,
    ) -> None:
        self._tokens: token_service_pb2_grpc.TokenServiceStub = channels.stub(
            token_service_pb2_grpc.TokenServiceStub, "identity"
        )
        self._verifier = verifier
        self._clock = clock
        self._requests = requests_per_minute
        self._per_minute = tokens_per_minute
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[ArgosyError, float]] = OrderedDict()
        self._exchanging: dict[bytes, asyncio.Future[Caller]] = {}

    async def authenticate(self, authorization: bytes | None) -> Caller:
        """Who this is. Raises TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED, PEER_UNAVAILABLE."""
        if authorization is None:
            raise ArgosyError("TOKEN_MISSING", "Send `Authorization: Bearer <key or token>`.")
        scheme, _, secret = authorization.partition(b" ")
        secret = secret.strip()
        if scheme.lower() != b"bearer" or not secret or not secret.isascii():
            raise ArgosyError("TOKEN_INVALID", "Send `Authorization: Bearer <key or token>`.")
        digest = hashlib.sha256(secret).digest()
        caller = self._callers.get(digest)
        now = self._clock.now().timestamp()
        # The verifier forgets a token as soon as its key or subject is revoked.
        if caller is not None and self._verifier.cached(caller.token) is None:
            del self._callers[digest]
            caller = None
        if caller is not None and now < caller.refresh:
            return caller
        if not secret.startswith(_KEY_PREFIX):
            return await self._from_token(secret, digest)
        try:
            return await self._exchange_once(secret, digest, now)
        except ArgosyError as error:
            # identity is away: what it said last holds to its end.
            if error.is_reason("PEER_UNAVAILABLE", "DEADLINE_EXCEEDED") and caller is not None and now < caller.expires:
                return caller
            raise

    async def _from_token(self, secret: bytes, digest: bytes) -> Caller:
        if len(secret) > _TOKEN_BYTES:
            raise ArgosyError("TOKEN_INVALID", "The token is not valid.")
        principal = await self._verifier.verify(secret.decode("ascii"))
        # The verifier knows when it ends.
        caller = self._caller(principal, refresh=math.inf, expires=math.inf, requests=0, tokens=0)
        self._remember(digest, caller)
        return caller

    async def _exchange_once(self, secret: bytes, digest: bytes, now: float) -> Caller:
        """One exchange for all requests that wait for the same key."""
        refused = self._refused.get(digest)
        if refused is not None and now < refused[1]:
            raise refused[0]
        if len(secret) > _KEY_BYTES:
            raise ArgosyError("TOKEN_INVALID", "The key is not valid.")
        running = self._exchanging.get(digest)
        if running is not None:
            return await asyncio.shield(running)
        future = self._exchanging[digest] = asyncio.get_running_loop().create_future()
        try:
            caller = await self._exchange(secret)
        except BaseException as error:
            self._after_failure(digest, error, future)
            raise
        finally:
            del self._exchanging[digest]
        future.set_result(caller)
        self._remember(digest, caller)
        return caller

    def _after_failure(self, digest: bytes, error: BaseException, future: asyncio.Future[Caller]) -> None:
        if not isinstance(error, ArgosyError):
            # The one that asked has gone; the others ask again.
            error = ArgosyError("PEER_UNAVAILABLE", "Ask again.", metadata={"service": "identity"}, retry_after=0.1)
        elif error.code.name == "UNAUTHENTICATED":
            self._callers.pop(digest, None)
            self._refused[digest] = (error, self._clock.now().timestamp() + _REFUSED_SECONDS)
            if len(self._refused) > _CALLERS:
                self._refused.popitem(last=False)
        future.set_exception(error)
        future.exception()  # nobody may be waiting; asyncio would complain that nobody looked

    async def _exchange(self, secret: bytes) -> Caller:
        request = token_service_pb2.ExchangeKeyRequest(key=secret.decode("ascii"))
        token = await self._tokens.ExchangeKey(request, timeout=_EXCHANGE_SECONDS)
        expires = token.expire_time.ToNanoseconds() / 1e9
        return self._caller(
            await self._verifier.verify(token.token),
            refresh=expires - _REFRESH_SECONDS,
            expires=expires - _MARGIN_SECONDS,
            requests=token.requests_per_minute,
            tokens=token.tokens_per_minute,
        )

    def _caller(self, principal: Principal, *, refresh: float, expires: float, requests: int, tokens: int) -> Caller:
        return Caller(
            org=principal.org,
            subject=principal.subject,
            role=principal.role,
            token=principal.token,
            api_key=principal.api_key,
            refresh=refresh,
            expires=expires,
            budget=self._budget(principal.api_key or principal.name, requests, tokens),
            authorization=("authorization", f"Bearer {principal.token}"),
        )

    def _budget(self, name: str, requests: int, tokens: int) -> Budget:
        """The budget of a key outlives its tokens: a new token is no new allowance."""
        requests, tokens, now = requests or self._requests, tokens or self._per_minute, self._clock.monotonic()
        budget = self._budgets.get(name)
        if budget is None:
            budget = self._budgets[name] = Budget(Bucket(requests, now), Bucket(tokens, now))
            if len(self._budgets) > _CALLERS:
                self._budgets.popitem(last=False)
        budget.requests.resize(requests, now)
        budget.tokens.resize(tokens, now)
        return budget

    def _remember(self, digest: bytes, caller: Caller) -> None:
        self._callers[digest] = caller
        self._callers.move_to_end(digest)
        if len(self._callers) > _CALLERS:
            self._callers.popitem(last=False)
