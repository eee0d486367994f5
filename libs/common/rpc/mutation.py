"""Calls that change something: once by request id, in one transaction that the binder commits."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from libs.common.errors import ArgosyError
from libs.common.rpc.call import Call
from libs.common.rpc.method import Exchange, Method, Step

if TYPE_CHECKING:
    from libs.common.db.uow import Database, UnitOfWork

# A serialisation failure is normal between calls that touch the same rows; more than this means contention that waiting cures.
_ATTEMPTS = 3


def serve_once(method: Method, handler: Callable[[Message, Call[Any]], Awaitable[Message]], database: Database) -> Step:
    """Look-up by request id, then the handler, then the commit of rows, events and the answer together.

    The same request id gives the first answer again; with another body it is REQUEST_ID_REUSED. A CONFLICT between transactions
    is tried again with a fresh unit of work, so handlers must be re-runnable until the commit.
    """
    has_request_id = method.policy.has_request_id

    def open_uow(call: Call[Any]) -> UnitOfWork:
        return database.unit_of_work(call.org, call.principal.subject, call.traceparent, call.deadline)

    async def attempt(exchange: Exchange, request_id: str, digest: bytes) -> bytes:
        call = exchange.call
        call.use_uow(open_uow)
        try:
            if request_id:
                known = await database.recall(call.org, method.policy.path, request_id, digest)
                if known is not None:
                    return known
            answer = (await handler(exchange.request, call)).SerializeToString()  # type: ignore[arg-type]
            if request_id:
                await call.uow.remember(method.policy.path, request_id, digest, answer)
            if call.opened_uow is not None:
                await call.opened_uow.commit()
            return answer
        except BaseException:
            if call.opened_uow is not None:
                await call.opened_uow.rollback()
            raise

    async def mutate(exchange: Exchange) -> bytes:
        request_id = exchange.request.request_id if has_request_id else ""  # type: ignore[union-attr]
        # Not the bytes that came: two clients may write the pairs of a map in different orders.
        body = exchange.request.SerializeToString(deterministic=True)  # type: ignore[union-attr]
        digest = hashlib.sha256(body).digest()
        for _ in range(_ATTEMPTS - 1):
            try:
                return await attempt(exchange, request_id, digest)
            except ArgosyError as error:
                if not error.is_reason("CONFLICT"):
                    raise
        return await attempt(exchange, request_id, digest)

    return mutate
