"""The ASGI application: finds who answers a request, and makes sure that every fault is an answer too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from argosy.common.v1 import options_pb2

from libs.common.clock import Clock
from libs.common.errors import ArgosyError, from_rpc_error, internal
from services.gateway.http.caller import Authenticator, Caller
from services.gateway.http.errors import HttpError
from services.gateway.http.exchange import ClientGone, Exchange, Receive, Scope, Send
from services.gateway.http.limits import charge_request
from services.gateway.http.methods import Methods
from services.gateway.http.routes import Match, MethodNotAllowed, RouteTable
from services.gateway.http.uploads import Uploads, upload_name

Handler = Callable[[Exchange], Awaitable[None]]
Record = Callable[[Exchange], None]

_log = logging.getLogger(__name__)


class Door:
    """Routes requests.

    Args:
        table: routes of the services.
        methods: calls what is behind them.
        uploads: takes files by PUT.
        authenticator: knows keys and tokens.
        fixed: HTTP method and path -> handler, for what is not a route of a service.
        prefixed: path prefix -> handler, such as `/v1/models/`.
        record: gets every finished request, for spans, metrics and access lines.
        max_requests: that are served at a time; more are refused with Retry-After.
    """

    def __init__(
        self,
        *,
        table: RouteTable,
        methods: Methods,
        uploads: Uploads,
        authenticator: Authenticator,
        fixed: Mapping[str, Mapping[str, Handler]],
        prefixed: Mapping[str, Mapping[str, Handler]],
        record: Record,
        max_requests: int,
        clock: Clock,
    ) -> None:
        self._table = table
        self._methods = methods
        self._uploads = uploads
        self._authenticator = authenticator
        self._fixed = fixed
        self._prefixed = prefixed
        self._record = record
        self._max_requests = max_requests
        self._clock = clock
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, self._clock)
        task = asyncio.current_task()
        if exchange.connection is not None and task is not None:
            exchange.connection.on_lost = task.cancel
        self.active += 1
        try:
            await self._answer(exchange)
        except (ClientGone, asyncio.CancelledError):
            # Nobody is there to hear the rest of the answer. 499 is what access logs call it.
            if not exchange.complete:
                exchange.status = 499
        finally:
            self.active -= 1
            if exchange.connection is not None:
                exchange.connection.on_lost = None
            self._record(exchange)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            if self.active > self._max_requests:
                raise ArgosyError("OVERLOADED", "The gateway is busy.", metadata={"limit": str(self._max_requests)})
            await self._dispatch(exchange)
        except ArgosyError as error:
            await self._fail(exchange, error)
        except HttpError as error:
            await self._fail(exchange, error.error, error.status, error.headers)
        except grpc.RpcError as error:
            await self._fail(exchange, from_rpc_error(error))
        except (ClientGone, asyncio.CancelledError):
            raise
        except BaseException:
            _log.exception("request failed", extra={"attributes": {"request_id": exchange.request_id}})
            await self._fail(exchange, internal())

    async def _fail(self, exchange: Exchange, error: ArgosyError, status: int | None = None, headers: Any = ()) -> None:
        if exchange.status:
            # The answer has begun, so its status cannot be changed any more; a cut answer says that it is not whole.
            _log.warning("answer cut: %s", error.reason, extra={"attributes": {"request_id": exchange.request_id}})
            raise ClientGone
        await exchange.fail(error, status, headers)

    async def _dispatch(self, exchange: Exchange) -> None:
        by_method = self._fixed.get(exchange.path) or self._by_prefix(exchange.path)
        if by_method is not None:
            handler = by_method.get("GET" if exchange.method == "HEAD" else exchange.method)
            if handler is None:
                raise _not_allowed(exchange, sorted(by_method))
            exchange.route = exchange.route or exchange.path
            await handler(exchange)
            return
        name = upload_name(exchange.path) if exchange.method == "PUT" else None
        if name is not None:
            exchange.route = Uploads.ROUTE

            def authenticate() -> Awaitable[Caller]:
                return self._authenticator.authenticate(exchange.headers.get(b"authorization"))

            caller = await authenticate()
            charge_request(exchange, caller.budget)
            exchange.attributes["argosy.org"] = caller.org
            await self._uploads.put(exchange, authenticate, name)
            return
        await self._call(exchange, self._match(exchange))

    def _by_prefix(self, path: str) -> Mapping[str, Handler] | None:
        for prefix, by_method in self._prefixed.items():
            if path.startswith(prefix):
                return by_method
        return None

    def _match(self, exchange: Exchange) -> Match:
        try:
            match = self._table.match(exchange.method, exchange.path)
        except MethodNotAllowed as error:
            raise _not_allowed(exchange, error.allowed) from None
        if match is None:
            shown = exchange.path[:200]
            raise ArgosyError("ROUTE_UNKNOWN", f"There is nothing at {shown}.", metadata={"path": shown})
        return match

    async def _call(self, exchange: Exchange, match: Match) -> None:
        exchange.route = f"{match.route.http_method} {match.route.template}"
        caller = None
        if match.route.policy.access != options_pb2.ACCESS_PUBLIC:
            if match.route.policy.access == options_pb2.ACCESS_PEER:
                raise ArgosyError("PEER_NOT_ALLOWED", "Only services may call this.", metadata={"peer": "gateway"})
            caller = await self._authenticator.authenticate(exchange.headers.get(b"authorization"))
            exchange.attributes["argosy.org"] = caller.org
            charge_request(exchange, caller.budget)
        await self._methods.call(exchange, match, caller)


def _not_allowed(exchange: Exchange, allowed: list[str]) -> HttpError:
    names = ", ".join(allowed)
    message = f"{exchange.method} is not allowed here; {names} is."
    error = ArgosyError("ROUTE_UNKNOWN", message, metadata={"path": exchange.path[:200], "allowed": names})
    return HttpError(405, error, ((b"allow", names.encode()),))
