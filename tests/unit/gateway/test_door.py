"""What the access log says of an exchange whose client hung up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from libs.common.clock import SYSTEM_CLOCK
from services.gateway.http.door import Door
from services.gateway.http.exchange import Exchange
from services.gateway.http.sse import EventWriter


@pytest.mark.parametrize(("whole", "status"), [(True, 200), (False, 499)])
async def test_a_client_that_hangs_up_after_the_last_byte_had_its_answer(whole: bool, status: int) -> None:
    recorded: list[Exchange] = []
    connection = SimpleNamespace(on_lost=None)

    async def answer(exchange: Exchange) -> None:
        async with EventWriter(exchange).open() as writer:
            await writer.write(b"data: 1\n\n")
            if whole:
                await writer.close(b"data: [DONE]\n\n")
            connection.on_lost()
            await asyncio.sleep(10)

    async def send(_: Any) -> None: ...

    nothing: Any = None
    door = Door(
        table=nothing,
        methods=nothing,
        uploads=nothing,
        authenticator=nothing,
        fixed={"/x": {"GET": answer}},
        prefixed={},
        record=recorded.append,
        max_requests=8,
        clock=SYSTEM_CLOCK,
    )
    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/x",
        "query_string": b"",
        "headers": [],
        "argosy.connection": connection,
    }
    await asyncio.create_task(door(scope, nothing, send))
    assert [exchange.status for exchange in recorded] == [status]
