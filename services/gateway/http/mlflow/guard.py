"""What every MLflow route begins and ends with: who asks, what is given, and errors in MLflow's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from libs.common.errors import ArgosyError
from services.gateway.clients.applications import Metadata
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.door import Handler
from services.gateway.http.errors import HttpError, http_status, retry_after
from services.gateway.http.exchange import JSON, ClientGone, Exchange
from services.gateway.http.json_message import Faults
from services.gateway.http.limits import charge_request
from services.gateway.http.mlflow.errors import error_body, status_of
from services.gateway.http.mlflow.given import Given, Json
from services.gateway.http.transcode import parse_json, parse_query

# MLflow's server takes a megabyte of a batch; its clients cut there.
_BODY_BYTES = 4 * 1024 * 1024
_SECONDS = 30.0


@dataclass(frozen=True)
class Visit:
    """One request of one caller.

    Attributes:
        given: its fields.
    """

    caller: Caller
    metadata: Metadata
    given: Given

    @property
    def org(self) -> str:
        """Id of the organization of the key."""
        return self.caller.org

    @property
    def call(self) -> dict[str, Any]:
        """What each call carries."""
        return {"metadata": (self.caller.authorization, *self.metadata), "timeout": _SECONDS}


Answer = Callable[[Visit], Awaitable[Json]]


async def admit(exchange: Exchange, authenticator: Authenticator) -> Visit:
    """Who asks, and the query, with one request of the budget spent. Raises what the authenticator raises, and
    RATE_LIMITED.
    """
    caller = await authenticator.authenticate(exchange.headers.get(b"authorization"))
    exchange.attributes["argosy.org"] = caller.org
    charge_request(exchange, caller.budget)
    return Visit(caller, exchange.call_metadata(), of_query(exchange.query))


def endpoint(authenticator: Authenticator, answer: Answer) -> Handler:
    """A handler that answers JSON: fields are those of the query for GET, else those of the body."""

    async def work(exchange: Exchange) -> None:
        visit = await admit(exchange, authenticator)
        if exchange.method not in ("GET", "HEAD"):
            body = await exchange.body(_BODY_BYTES)
            visit = replace(visit, given=Given.of_body(parse_json(body)))
        found = await answer(visit)
        await exchange.respond(200, orjson.dumps(found))

    async def handler(exchange: Exchange) -> None:
        await guarded(exchange, work(exchange))

    return handler


def of_query(query: bytes) -> Given:
    """The fields of a query string. Raises INVALID_FIELD for one that is not UTF-8."""
    faults = Faults()
    found = parse_query(query, faults)
    faults.raise_if_any()
    return Given({name: values[0] if len(values) == 1 else values for name, values in found.items()})


async def guarded(exchange: Exchange, work: Awaitable[None]) -> None:
    """Does the work, and answers what goes wrong as MLflow does."""
    try:
        await work
    except (ArgosyError, HttpError) as failure:
        error = failure.error if isinstance(failure, HttpError) else failure
        status = failure.status if isinstance(failure, HttpError) else status_of(error, http_status(error))
        if exchange.status:
            raise ClientGone from None
        headers = list(failure.headers) if isinstance(failure, HttpError) else []
        wait = retry_after(error)
        if wait is not None:
            headers.append((b"retry-after", wait))
        # A client that still writes would see a reset instead of the answer.
        await exchange.discard()
        if status == 413:
            headers.append((b"connection", b"close"))
        await exchange.respond(status, error_body(error, status), JSON, headers)
