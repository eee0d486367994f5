"""Streams: rows that keep coming, and become versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.domain import DomainError, Resource

DEFAULT_ROWS = 100_000
DEFAULT_SECONDS = 300
# A version is made of so many bytes at the latest, ...
ROLL_BYTES = 256 << 20
# ... and no more may wait: imports do not keep up.
MOST_PENDING_BYTES = 4 * ROLL_BYTES
# How long what cannot become a version yet waits for the next try.
_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Batch:
    """Rows that came together, as lines of JSON in one blob."""

    rows: int
    size: int
    sha256: str


@dataclass(kw_only=True)
class Stream(Resource):
    """A stream into a dataset. See `DatasetStream` for the attributes."""

    roll_rows: int
    roll_seconds: int
    pending_rows: int = 0
    pending_bytes: int = 0
    roll_time: datetime | None = None
    row_count: int = 0
    roll_count: int = 0
    task: str = ""

    def append(self, batch: Batch, now: datetime) -> None:
        """Takes rows. Raises STATE_CONFLICT while too many wait."""
        if self.pending_bytes + batch.size > MOST_PENDING_BYTES:
            message = f"{self.name}: {self.pending_bytes:,} bytes wait to become a version; send more when they have."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="full", wanted="room")
        self.pending_rows += batch.rows
        self.pending_bytes += batch.size
        self.row_count += batch.rows
        if self.pending_rows >= self.roll_rows or self.pending_bytes >= ROLL_BYTES:
            self.roll_time = min(now, self.roll_time or now)
        elif self.roll_time is None:
            self.roll_time = now + timedelta(seconds=self.roll_seconds)
        self.update_time = now

    def roll(self, task: str, now: datetime) -> None:
        """What waited becomes a version, by a task."""
        self.pending_rows, self.pending_bytes, self.roll_time = 0, 0, None
        self.roll_count += 1
        self.task, self.update_time = task, now

    def postpone(self, now: datetime) -> None:
        """What waits cannot become a version now."""
        self.roll_time = now + _PATIENCE

    def require_pending(self, wanted: bool) -> None:
        """Raises STATE_CONFLICT unless rows wait, or none does."""
        if bool(self.pending_rows) == wanted:
            return
        message = f"{self.name}: " + ("no row waits." if wanted else f"{self.pending_rows:,} rows wait: roll it first.")
        states = ("pending", "empty") if wanted else ("empty", "pending")
        raise DomainError("STATE_CONFLICT", message, name=self.name, state=states[1], wanted=states[0])
