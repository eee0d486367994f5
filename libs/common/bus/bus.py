"""The connection of one process to NATS, and the one stream of events."""

from __future__ import annotations

import asyncio
import logging

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

_log = logging.getLogger(__name__)

STREAM = "EVENTS"
SUBJECTS = "ev.>"
_DAY = 24 * 3600
_CONNECT_SECONDS = 2.0
# Between two attempts; the default of 2 s would be most of a start.
_RECONNECT_SECONDS = 0.5
_PUBLISH_SECONDS = 5.0
# Events are envelopes; content travels through the blob store.
_MAX_EVENT_BYTES = 512 << 10


class BusUnavailableError(Exception):
    """NATS does not answer. Whether a message arrived is not known: send it again with the same id."""


def stream_config() -> StreamConfig:
    """What the stream looks like. The outboxes are the truth, so it may lose its oldest messages or all of them."""
    return StreamConfig(
        name=STREAM,
        subjects=[SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=7 * _DAY,
        max_bytes=256 << 20,
        max_msg_size=_MAX_EVENT_BYTES,
        # A relay that was killed between sending and noting it sends again within this time; later the inbox finds it.
        duplicate_window=600,
    )


async def ensure_stream(jetstream: JetStreamContext) -> None:
    """Makes the stream if there is none."""
    try:
        await jetstream.stream_info(STREAM)
    except NotFoundError:
        await jetstream.add_stream(stream_config())
        _log.info("stream %s made", STREAM)


class Bus:
    """One connection, which is made again for ever.

    Args:
        url: `nats://user:password@host:port`; empty: there is no bus, and events wait in the outbox.
        service: name of the service; its user in NATS may read below `_INBOX_<service>` only.
    """

    def __init__(self, url: str, service: str) -> None:
        self.service = service
        self._url = url
        self._client: Client | None = None
        self._up = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return self._client is not None and self._client.is_connected and self._up.is_set()

    async def run(self) -> None:
        """Keeps the connection until it is cancelled."""
        if not self._url:
            await asyncio.Event().wait()
        while True:
            closed = asyncio.Event()
            try:
                self._client = await self._connect(closed)
                await self._reconnected()
                await closed.wait()
                _log.warning("the connection to NATS was closed")
            except (NatsError, OSError) as error:
                _log.warning("NATS does not answer: %s", error or type(error).__name__)
                await asyncio.sleep(_RECONNECT_SECONDS)
            finally:
                self._up.clear()
                client, self._client = self._client, None
                if client is not None and not client.is_closed:
                    await client.close()

    async def jetstream(self) -> JetStreamContext:
        """The stream's interface. Waits until the connection stands."""
        while not self.connected:
            self._up.clear()
            await self._up.wait()
        assert self._client is not None
        return self._client.jetstream(timeout=_PUBLISH_SECONDS)

    async def publish(self, subject: str, body: bytes, message_id: str, headers: dict[str, str]) -> None:
        """Publishes one message and waits until it is on NATS's disk.

        Args:
            subject: `ev.<org>.<area>.<resource>.<verb>`.
            body: serialised Event.
            message_id: the stream keeps the first of those with one id.
            headers: further headers.

        Raises:
            BusUnavailableError: it may have arrived or not.
        """
        if not self.connected or self._client is None:
            raise BusUnavailableError("not connected")
        jetstream = self._client.jetstream(timeout=_PUBLISH_SECONDS)
        try:
            await jetstream.publish(subject, body, stream=STREAM, headers={**headers, "Nats-Msg-Id": message_id})
        except (NatsError, OSError) as error:
            # Its data may have been wiped under the connection.
            await self._ensure_stream()
            raise BusUnavailableError(str(error) or type(error).__name__) from error

    async def _connect(self, closed: asyncio.Event) -> Client:
        async def on_closed() -> None:
            closed.set()

        async def on_disconnected() -> None:
            if self._up.is_set():
                _log.warning("NATS went away; events wait in the outbox")
            self._up.clear()

        async def on_error(error: Exception) -> None:
            _log.debug("NATS client: %s", error or type(error).__name__)

        return await nats.connect(
            self._url,
            name=self.service,
            connect_timeout=_CONNECT_SECONDS,
            reconnect_time_wait=_RECONNECT_SECONDS,
            # The default gives up for good after 60 attempts.
            max_reconnect_attempts=-1,
            ping_interval=20,
            max_outstanding_pings=2,
            inbox_prefix=f"_INBOX_{self.service}",
            closed_cb=on_closed,
            disconnected_cb=on_disconnected,
            reconnected_cb=self._reconnected,
            error_cb=on_error,
        )

    async def _reconnected(self) -> None:
        await self._ensure_stream()
        self._up.set()

    async def _ensure_stream(self) -> None:
        if self._client is None or not self._client.is_connected:
            return
        try:
            await ensure_stream(self._client.jetstream(timeout=_PUBLISH_SECONDS))
        except (NatsError, OSError) as error:
            _log.warning("the stream cannot be made: %s", error or type(error).__name__)
