"""Publishes on the subjects of a NATS server outside of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client


class Subjects:
    """A connection to a server."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.jetstream = client.jetstream()

    async def keep(self, stream: str, *subjects: str, **config: Any) -> None:
        """Makes a JetStream stream for subjects, in place of one that was there."""
        await self.forget(stream)
        await self.jetstream.add_stream(name=stream, subjects=list(subjects), **config)

    async def forget(self, *streams: str) -> None:
        """Deletes those JetStream streams that are there."""
        for found in await self.jetstream.streams_info():
            if found.config.name in streams:
                await self.jetstream.delete_stream(str(found.config.name))

    async def publish(self, subject: str, bodies: Iterable[bytes]) -> None:
        """Publishes messages, in order, and waits until all of them are kept."""
        sent = [await self.jetstream.publish_async(subject, body) for body in bodies]
        await asyncio.gather(*sent)


@asynccontextmanager
async def subjects(url: str, user: str | None = None, password: str | None = None) -> AsyncGenerator[Subjects]:
    """Connects to a server, and again when it is restarted."""

    async def ignore(_error: Exception) -> None:
        """That it is away is what tests want."""

    client = Client()
    # Steps of a tenth of a second.
    patience: dict[str, Any] = {"reconnect_time_wait": 0.1, "max_reconnect_attempts": 100}
    await client.connect(url, user=user, password=password, error_cb=ignore, **patience)
    try:
        yield Subjects(client)
    finally:
        await client.close()


def numbered(*numbers: int) -> list[bytes]:
    """Rows with numbers."""
    return [b'{"n": %d}' % number for number in numbers]
