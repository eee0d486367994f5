"""The usage ledger on its way to identity: written to a journal before the answer ends, sent in batches, counted once.

The journal is a folder of segments. Entries go to the newest with one `write` each, so they outlive this process; each
second a segment with entries is closed, sent, and removed when identity has them. identity skips entries whose id it
knows, so sending a segment twice is harmless, and a segment that a killed process left is sent by the next one.
"""

from __future__ import annotations

import logging
import os
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from argosy.identity.v1 import usage_service_pb2, usage_service_pb2_grpc
from google.protobuf.message import DecodeError

from libs.common.clock import Clock
from libs.common.errors import ArgosyError
from libs.common.ids import uuid7
from services.gateway.clients.backends import StubSource

_log = logging.getLogger(__name__)

Entry = usage_service_pb2.UsageEntry

FLUSH_SECONDS = 1.0
# What RecordUsage takes in one call.
_BATCH = 1000
_SEND_SECONDS = 10.0
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class _Segment:
    """A file of entries; `entries` are the same in memory, None when they must be read."""

    path: Path
    entries: list[Entry] | None


class Ledger:
    """Takes usage entries.

    Args:
        channels: the way to identity.
        folder: of the journal; only one process may use it.
        clock: for the beat.
    """

    def __init__(self, channels: StubSource, folder: Path, clock: Clock) -> None:
        self._usage: usage_service_pb2_grpc.UsageServiceStub = channels.stub(
            usage_service_pb2_grpc.UsageServiceStub, "identity"
        )
        self._folder = folder
        self._clock = clock
        self._entries: list[Entry] = []
        self._file = -1
        self._path = folder
        self._closed: deque[_Segment] = deque()

    def open(self) -> None:
        """Finds what an earlier process left and begins a segment."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._closed.extend(_Segment(path, None) for path in sorted(self._folder.glob("usage-*.journal")))
        self._begin()

    def add(self, entry: Entry) -> None:
        """Writes one entry. It is safe from a kill of this process when this returns."""
        data = entry.SerializeToString()
        self._entries.append(entry)
        try:
            os.write(self._file, _LENGTH.pack(len(data)) + data)
        except OSError as error:
            # A full disk: the entry is sent from memory all the same.
            _log.error("usage journal cannot be written: %s", os.strerror(error.errno or 0))

    async def run(self) -> None:
        """Sends what comes in, for ever."""
        while True:
            await self._clock.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Sends everything that is there; what cannot be sent now stays in the journal."""
        if self._entries:
            self._closed.append(_Segment(self._path, self._entries))
            os.close(self._file)
            self._begin()
        while self._closed:
            segment = self._closed[0]
            if not await self._send(segment):
                return
            self._closed.popleft()
            segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; an empty segment is removed."""
        os.close(self._file)
        if not self._entries:
            self._path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._entries = []
        self._path = self._folder / f"usage-{uuid7()}.journal"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def _send(self, segment: _Segment) -> bool:
        entries = _read(segment.path) if segment.entries is None else segment.entries
        for start in range(0, len(entries), _BATCH):
            request = usage_service_pb2.RecordUsageRequest(entries=entries[start : start + _BATCH])
            try:
                await self._usage.RecordUsage(request, timeout=_SEND_SECONDS)
            except ArgosyError as error:
                _log.warning("usage cannot be recorded now: %s", error.reason)
                if len(self._closed) > 1:
                    # identity is away for longer: the file is enough.
                    segment.entries = None
                return False
        return True


def _read(path: Path) -> list[Entry]:
    """The entries of a segment, as far as they are whole: a process may have died while it wrote the last."""
    return list(_parse(path.read_bytes()))


def _parse(data: bytes) -> Iterable[Entry]:
    place = 0
    while place + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if place + length > len(data):
            return
        try:
            yield Entry.FromString(data[place : place + length])
        except DecodeError:
            return
        place += length
