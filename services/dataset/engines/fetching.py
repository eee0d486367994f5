"""Files from outside: fetched piece by piece, so that what has arrived stays when a connection breaks or a task is
killed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Protocol

from libs.common.domain import DomainError
from libs.compute.context import EngineContext, EngineError, Json
from services.dataset.domain.formats import format_of

# Of a task's work; the rest is reading the rows.
FETCHED_SHARE = 0.5
# What is lost at most when a task is killed, and how many pieces a checkpoint has to name: 3,200 of 100 GiB.
_PIECE_BYTES = 32 * 1024 * 1024
_REPORT_SECONDS = 0.5
# Breaks in a row with less than this in between, and the first pause, which doubles: together seven seconds. The
# task's next attempts are patient beyond that.
_MOST_BREAKS = 4
_PROGRESS_BYTES = 1024 * 1024
_FIRST_PAUSE = 1.0


@dataclass
class Fetched:
    """What has arrived of a file.

    Attributes:
        pieces: `sha256` and `size` of the blobs, in order.
        validator: tells the file from another one at the same address; empty: what has arrived cannot be continued.
        file_name: that the server or the address gives it; never used as a path.
        total: bytes that it will have; 0: not known.
    """

    pieces: list[Json] = field(default_factory=list[Json])
    validator: str = ""
    file_name: str = ""
    total: int = 0

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return sum(piece["size"] for piece in self.pieces)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, as far as anybody said how much there is."""
        return 0 < self.total == self.size

    def begin(self, validator: str, file_name: str, total: int) -> None:
        """Forgets what has arrived: the file comes from its beginning."""
        self.pieces, self.validator, self.file_name, self.total = [], validator, file_name, total

    def format_name(self) -> str:
        """The format that the name means. Raises EngineError."""
        found = format_of(self.file_name)
        if found is None:
            message = f"format: cannot be told from the file name {self.file_name!r}; say which it is"
            raise EngineError("INVALID_FIELD", message, field="format")
        return found


class Source(Protocol):
    """A file at an address."""

    @property
    def address(self) -> str:
        """For people and lineage; without anything secret."""
        ...

    def read(self, fetched: Fetched, seconds: float) -> Generator[bytes]:
        """The bytes behind those that have arrived, or, after `fetched.begin`, all of them.

        Args:
            fetched: what has arrived; says whether it can be continued.
            seconds: that this may take.

        Raises:
            DomainError: PEER_UNAVAILABLE where another try may help; others where none does.
        """
        ...


def fetch(ctx: EngineContext, source: Source) -> Fetched:
    """Fetches a file into the task's own blobs, from where an earlier attempt stood.

    Raises:
        DomainError: PEER_UNAVAILABLE, it broke off too often; INVALID_FIELD, TOO_LARGE, CONTENT_INVALID.
    """
    fetched = _resumed(ctx)
    until = time.monotonic() + ctx.spec["max_seconds"]
    breaks = 0
    while not fetched.complete:
        before = fetched.size
        try:
            with closing(source.read(fetched, max(0.0, until - time.monotonic()))) as chunks:
                _receive(ctx, chunks, fetched)
            break
        except DomainError as error:
            if error.reason != "PEER_UNAVAILABLE":
                raise
            if time.monotonic() >= until:
                limit = f"{ctx.spec['max_seconds']:,.0f} seconds"
                raise EngineError("DEADLINE_EXCEEDED", f"{source.address} was not here after {limit}") from error
            breaks = breaks + 1 if fetched.size < before + _PROGRESS_BYTES else 0
            if breaks >= _MOST_BREAKS:
                raise
            ctx.log(f"{error.message}; goes on at byte {fetched.size if fetched.validator else 0:,}", "WARNING")
        _pause(ctx, _FIRST_PAUSE * 2 ** (breaks - 1))
    return fetched


def _resumed(ctx: EngineContext) -> Fetched:
    """What an earlier attempt has left, unless the sweep took it: somebody may retry a task after days."""
    if not ctx.resume:
        return Fetched()
    fetched = Fetched(**ctx.resume)
    try:
        for piece in fetched.pieces:
            ctx.blobs_write.stat_sync(piece["sha256"])
    except DomainError as error:
        if error.reason not in ("NOT_FOUND", "GRANT_DENIED"):
            raise
        return Fetched()
    return fetched


def _receive(ctx: EngineContext, chunks: Iterator[bytes], fetched: Fetched) -> None:
    """Stores what comes until it ends or breaks."""
    reported = 0.0
    ended = False
    while not ended:
        size = 0
        with ctx.blobs_write.writer() as writer:
            try:
                for chunk in chunks:
                    writer.write(chunk)
                    size += len(chunk)
                    ctx.stop_if_cancelled()
                    if time.monotonic() - reported > _REPORT_SECONDS:
                        reported = time.monotonic()
                        _report(ctx, fetched, size)
                    if size >= _PIECE_BYTES:
                        break
                else:
                    ended = True
            finally:
                # Bytes that came before a break count.
                if size:
                    fetched.pieces.append({"sha256": writer.finish().sha256, "size": size})
                    ctx.checkpoint(asdict(fetched))


def _report(ctx: EngineContext, fetched: Fetched, size: int) -> None:
    done = fetched.size + size
    share = min(1.0, done / fetched.total) if fetched.total else 0.0
    of = f" of {fetched.total / 1e6:,.1f}" if fetched.total else ""
    ctx.progress(FETCHED_SHARE * share, f"{done / 1e6:,.1f}{of} MB of {fetched.file_name} fetched", bytes=done)


def _pause(ctx: EngineContext, seconds: float) -> None:
    until = time.monotonic() + seconds
    ctx.stop_if_cancelled()
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))
        ctx.stop_if_cancelled()
