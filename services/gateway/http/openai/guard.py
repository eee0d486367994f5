"""What every OpenAI route begins and ends with: who asks, and errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Awaitable

from libs.common.errors import ArgosyError
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.errors import HttpError, retry_after
from services.gateway.http.exchange import JSON, ClientGone, Exchange
from services.gateway.http.limits import charge_request
from services.gateway.http.openai.errors import error_body, status_of


async def admit(exchange: Exchange, authenticator: Authenticator) -> Caller:
    """Who asks, with one request of the budget spent. Raises what the authenticator raises, and RATE_LIMITED."""
    caller = await authenticator.authenticate(exchange.headers.get(b"authorization"))
    exchange.attributes["argosy.org"] = caller.org
    charge_request(exchange, caller.budget)
    return caller


async def guarded(exchange: Exchange, work: Awaitable[None]) -> None:
    """Does the work, and answers what goes wrong as OpenAI does."""
    try:
        await work
    except (ArgosyError, HttpError) as failure:
        error, status = status_of(failure)
        if exchange.status:
            if exchange.status == 200:
                return  # the stream has told it already
            raise ClientGone from None
        headers = list(failure.headers) if isinstance(failure, HttpError) else []
        wait = retry_after(error)
        if wait is not None:
            headers.append((b"retry-after", wait))
        if status == 413:
            await exchange.discard()
            headers.append((b"connection", b"close"))
        await exchange.respond(status, error_body(error, status), JSON, headers)
