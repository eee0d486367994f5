"""Budgets at the door: what a key may spend a minute, and the headers that tell it."""

from __future__ import annotations

from libs.common.errors import ArgosyError
from services.gateway.domain.buckets import Bucket, Budget
from services.gateway.http.exchange import Exchange

_KINDS = {
    "requests": (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    "tokens": (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}


def charge_request(exchange: Exchange, budget: Budget) -> None:
    """Spends one request of the budget. Raises RATE_LIMITED when none is left."""
    now = exchange.clock.monotonic()
    wait = budget.requests.take(1, now)
    _tell(exchange, "requests", budget.requests, now)
    if wait:
        raise _limited("requests", budget.requests, wait)


def charge_tokens(exchange: Exchange, budget: Budget, estimate: int) -> None:
    """Reserves tokens of a language model. Raises RATE_LIMITED when they are not left."""
    now = exchange.clock.monotonic()
    wait = budget.tokens.take(estimate, now)
    _tell(exchange, "tokens", budget.tokens, now)
    if wait:
        raise _limited("tokens", budget.tokens, wait)


def settle_tokens(budget: Budget, reserved: int, used: int, now: float) -> None:
    """Replaces a reservation by what was really used."""
    if reserved != used:
        budget.tokens.settle(used - reserved, now)


def _tell(exchange: Exchange, kind: str, bucket: Bucket, now: float) -> None:
    limit, remaining, reset = _KINDS[kind]
    level = bucket.level(now)
    exchange.extra += (
        (limit, b"%d" % bucket.limit),
        (remaining, b"%d" % (level if level > 0 else 0)),
        (reset, b"%.3fs" % bucket.reset(now)),
    )


def _limited(kind: str, bucket: Bucket, wait: float) -> ArgosyError:
    message = f"The {kind} of this minute are spent: {bucket.limit} a minute."
    metadata = {"limit": f"{bucket.limit} {kind} a minute", "kind": kind}
    return ArgosyError("RATE_LIMITED", message, metadata=metadata, retry_after=wait)
