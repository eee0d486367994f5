"""Takes messages of NATS into the streams that have them as their source."""

from __future__ import annotations

import asyncio
import logging

import orjson

from libs.common.aio import Background
from libs.common.blobs import BlobStore
from libs.common.bus.external import FETCHED_BYTES, NATS_PORTS, Message, open_subject
from libs.common.clock import Clock
from libs.common.db.uow import Database, UnitOfWork
from libs.common.domain import DomainError, invalid
from libs.common.http.links import Networks, ServerAddress, parse_server
from libs.common.rpc.client import Channels
from services.dataset.clients.secrets import secret_payload
from services.dataset.domain.streams import MOST_ROW_BYTES, Batch, Stream, Taken
from services.dataset.store.repositories import Datasets
from services.dataset.store.streams import Streams

_BEAT = 1.0
# A source that fails at once is tried again after the first pause, which doubles up to the second.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# Between two fetches: others get their turn however fast a server is.
_BREATH = 0.01
# White space in JSON; elsewhere in it both are escaped.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")

_log = logging.getLogger(__name__)


class Receiving:
    """Reads the sources of streams. The position in a source changes in the transaction that takes its messages, so
    each is taken once, whenever the process ends, and however many processes read.

    Args:
        database: The service's.
        blobs: The service's.
        channels: Lead to the service that has secrets.
        networks: Where sources may be.
        clock: Gives the times of rows, and of pauses.
    """

    def __init__(
        self, database: Database, blobs: BlobStore, channels: Channels, networks: Networks, clock: Clock
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._channels = channels
        self._networks = networks
        self._clock = clock

    async def run(self) -> None:
        """Keeps a reader for each stream with a source until it is cancelled."""
        readers: dict[str, asyncio.Task[None]] = {}
        async with Background("receiving") as background:
            while True:
                try:
                    async with self._database.system(read_only=True) as uow:
                        wanted = await Streams(uow).sourced()
                    for name in wanted - readers.keys():
                        readers[name] = background.start(self._keep_reading(name), name=name)
                    for name in readers.keys() - wanted:
                        # Again at every beat until it ends: nats-py swallows a cancellation now and then.
                        readers[name].cancel()
                    readers = {name: reader for name, reader in readers.items() if not reader.done()}
                except DomainError as error:
                    _log.warning("sources wait: %s", error.message)
                await self._clock.sleep(_BEAT)

    async def _keep_reading(self, name: str) -> None:
        pause = _FIRST_PAUSE
        while True:
            began = self._clock.monotonic()
            try:
                await self._read(name)
            except DomainError as error:
                await self._fail(name, error)
            lasted = self._clock.monotonic() - began
            await self._clock.sleep(pause)
            pause = _FIRST_PAUSE if lasted > _LONGEST_PAUSE else min(2 * pause, _LONGEST_PAUSE)

    async def _read(self, name: str) -> None:
        """Reads on where the stream stands, until something is in the way.

        Raises:
            DomainError: what is in the way.
        """
        async with self._database.system(read_only=True) as uow:
            stream = await _open_stream(uow, name)
        server = await self._server(stream)
        field = "nats_source.uri" if stream.source_uri else "nats_source.secret"
        async with open_subject(server, stream.source_subject, self._networks, field) as subject:
            stream.require_origin(subject.origin)
            position = stream.source_position
            await subject.begin(position)
            await self._show(name, "")
            while True:
                if messages := await subject.fetch():
                    await self._take(name, subject.origin, position, messages)
                    position = messages[-1].sequence
                await self._clock.sleep(_BREATH)

    async def _server(self, stream: Stream) -> ServerAddress:
        if stream.source_uri:
            return parse_server(stream.source_uri, NATS_PORTS, "nats_source.uri")
        payload = await secret_payload(stream.source_secret, self._channels)
        try:
            return parse_server(payload, NATS_PORTS, credentials=True)
        except DomainError:
            # Without a word of what is in it.
            problem = "does not hold the address of a NATS server: nats://user:password@host:port"
            raise invalid("nats_source.secret", problem) from None

    async def _take(self, name: str, origin: str, after: int, messages: list[Message]) -> None:
        """Appends messages to the stream, all or none."""
        lines, rejections = await asyncio.to_thread(_sorted, messages)
        # Durable before the row says so, and before a connection is taken. What is refused is garbage.
        blob = await self._blobs.put(b"".join(lines)) if lines else None
        batch = Batch(len(lines), blob.size, blob.sha256) if blob is not None else None
        last, rejection = messages[-1].sequence, rejections[-1] if rejections else ""
        async with self._database.system() as uow:
            stream = await _open_stream(uow, name, for_update=True)
            stream.take(Taken(origin, after, last, batch, len(rejections), rejection), self._clock.now())
            if batch is not None:
                await Streams(uow).add_batch(stream, batch)
            await Streams(uow).save(stream)

    async def _fail(self, name: str, error: DomainError) -> None:
        if error.reason == "CONFLICT":
            _log.info("%s", error.message)
            return
        _log.warning("%s waits: %s", name, error.message)
        try:
            await self._show(name, error.message)
        except DomainError as failure:
            _log.warning("%s: %s", name, failure.message)

    async def _show(self, name: str, error: str) -> None:
        """Says in the stream why no message comes; empty: they do."""
        async with self._database.system() as uow:
            stream = await Streams(uow).find(name, for_update=True)
            if stream is not None and stream.source_error != error:
                stream.source_error, stream.update_time = error, self._clock.now()
                await Streams(uow).save(stream)


async def _open_stream(uow: UnitOfWork, name: str, *, for_update: bool = False) -> Stream:
    """The stream, if it may take what is fetched at once.

    Raises:
        DomainError: NOT_FOUND, the stream or its dataset is gone; STATE_CONFLICT, the dataset is locked, or too many
            rows wait.
    """
    stream = await Streams(uow).get(name, for_update=for_update)
    dataset = await Datasets(uow).get(stream.parent)
    dataset.require_unlocked()
    stream.require_room(FETCHED_BYTES)
    return stream


def _sorted(messages: list[Message]) -> tuple[list[bytes], list[str]]:
    """The rows among messages as lines of JSON, and what is wrong with the others."""
    lines: list[bytes] = []
    rejections: list[str] = []
    for message in messages:
        if problem := _problem(message.data):
            rejections.append(f"message {message.sequence} {problem}")
        else:
            lines.append(message.data.translate(_ONE_LINE) + b"\n")
    return lines, rejections


def _problem(data: bytes) -> str:
    """Why a message is no row; empty: it is one."""
    if len(data) > MOST_ROW_BYTES:
        return f"has {len(data):,} bytes; {MOST_ROW_BYTES:,} at most"
    try:
        return "" if isinstance(orjson.loads(data), dict) else "is no JSON object"
    except orjson.JSONDecodeError as error:
        return f"is no JSON: {error}"
