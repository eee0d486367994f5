"""Sheds load before it costs anything.

Health, reflection and channelz are not bound through the chain, so they stay exempt.
"""

from __future__ import annotations

import asyncio

from libs.common.errors import ArgosyError
from libs.common.rpc.method import Exchange, Host, Method, Step


def wrap(method: Method, host: Host, step: Step) -> Step:
    """Refuses calls above the limit with OVERLOADED and RetryInfo.

    Long calls, which may last for hours, are counted apart.
    """
    load = host.load

    async def admission(exchange: Exchange) -> bytes | None:
        if load.calls >= load.max_calls:
            raise _overloaded(load.max_calls)
        load.calls += 1
        try:
            return await step(exchange)
        finally:
            load.calls -= 1

    async def long_admission(exchange: Exchange) -> bytes | None:
        if load.draining:
            raise ArgosyError("DRAINING", "The server is shutting down.")
        if len(load.long) >= load.max_long:
            raise _overloaded(load.max_long)
        task = asyncio.current_task()
        assert task is not None
        load.long.add(task)
        try:
            return await step(exchange)
        finally:
            load.long.discard(task)

    return long_admission if method.policy.long else admission


def _overloaded(limit: int) -> ArgosyError:
    return ArgosyError("OVERLOADED", "The server has as many calls as it takes.", metadata={"limit": str(limit)})
