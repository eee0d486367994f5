"""Who sent a request, as the door needs to know it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from services.gateway.domain.buckets import Budget


@dataclass(slots=True)
class Caller:
    """A verified key or token.

    Attributes:
        org: organization id.
        subject: `users/<id>` or `serviceAccounts/<id>`.
        role: value of argosy.common.v1.Role.
        token: JWT that services accept.
        api_key: `orgs/{org}/apiKeys/{api_key}`; empty for a token that no key is behind.
        refresh: UNIX time from which on identity is asked again.
        expires: UNIX time up to which this may be used while identity is away.
        budget: what it may spend a minute.
        authorization: gRPC metadata entry with the token.
        audience_tokens: deployment -> (metadata entry, UNIX time of expiry), filled by the client of the replicas.
    """

    org: str
    subject: str
    role: int
    token: str
    api_key: str
    refresh: float
    expires: float
    budget: Budget
    authorization: tuple[str, str] = ("", "")
    audience_tokens: dict[str, tuple[tuple[str, str], float]] = field(default_factory=dict)


class Authenticator(Protocol):
    """Turns the header Authorization into a caller."""

    async def authenticate(self, authorization: bytes | None) -> Caller:
        """Raises TOKEN_MISSING, TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED, or PEER_UNAVAILABLE when identity is
        away.
        """
        ...


# Who sends a request, with a token that still holds.
Authenticate = Callable[[], Awaitable[Caller]]
