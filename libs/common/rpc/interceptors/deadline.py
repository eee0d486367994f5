"""Every call ends: at the caller's deadline, or at the longest one that the method allows."""

from __future__ import annotations

import asyncio
import time

from libs.common import pki
from libs.common.errors import ArgosyError
from libs.common.rpc.method import Exchange, Host, Method, Step


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Refuses services that set no deadline; a person with the operator's certificate gets the longest one.

    gRPC itself cancels the handler at the caller's deadline. Only a deadline that is cut needs a timer of ours.
    """
    del host
    longest = method.policy.max_deadline

    async def deadline(exchange: Exchange) -> bytes | None:
        remaining = exchange.context.time_remaining()
        if remaining is None and exchange.peer != pki.OPERATOR:
            raise ArgosyError("DEADLINE_MISSING", "The call has no deadline.")
        if remaining is not None and remaining <= longest:
            exchange.call.deadline = time.monotonic() + remaining
            return await step(exchange)
        exchange.call.deadline = time.monotonic() + longest
        async with asyncio.timeout(longest):
            return await step(exchange)

    return deadline
