"""Streams: rows that keep coming, and become versions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.domain import DomainError, Resource

DEFAULT_ROWS = 100_000
DEFAULT_SECONDS = 300
# Of one row, as JSON.
MOST_ROW_BYTES = 256 << 10
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


@dataclass(frozen=True)
class Taken:
    """Messages of a source, one behind the other.

    Attributes:
        origin: what keeps them; another origin's positions mean nothing here.
        after: position of the message before the first of them; 0: there is none.
        last: position of the last of them.
        batch: the rows among them; None: there is none.
        rejected: how many are no rows.
        rejection: which of those was the last, and why; empty: there is none.
    """

    origin: str
    after: int
    last: int
    batch: Batch | None
    rejected: int = 0
    rejection: str = ""


@dataclass(kw_only=True)
class Stream(Resource):
    """A stream into a dataset. See `DatasetStream` for the attributes.

    Attributes:
        source_uri, source_secret, source_subject: its `nats_source`; all are empty where rows are sent.
        source_origin: what the messages so far came from; empty: there are none.
    """

    roll_rows: int
    roll_seconds: int
    pending_rows: int = 0
    pending_bytes: int = 0
    roll_time: datetime | None = None
    row_count: int = 0
    roll_count: int = 0
    task: str = ""
    source_uri: str = ""
    source_secret: str = ""
    source_subject: str = ""
    source_origin: str = ""
    source_position: int = 0
    source_error: str = ""
    rejected_count: int = 0
    last_rejection: str = ""

    def append(self, batch: Batch, now: datetime) -> None:
        """Takes rows. Raises STATE_CONFLICT while too many wait."""
        self.require_room(batch.size)
        self.pending_rows += batch.rows
        self.pending_bytes += batch.size
        self.row_count += batch.rows
        if self.pending_rows >= self.roll_rows or self.pending_bytes >= ROLL_BYTES:
            self.hasten(now)
        elif self.roll_time is None:
            self.roll_time = now + timedelta(seconds=self.roll_seconds)
        self.update_time = now

    def take(self, taken: Taken, now: datetime) -> None:
        """Takes messages of the source, if they are the next ones.

        Raises:
            DomainError: CONFLICT, somebody else has taken them; STATE_CONFLICT, they come from elsewhere, or too many
                rows wait.
        """
        self.require_origin(taken.origin)
        if self.source_position != taken.after:
            message = f"{self.name}: message {self.source_position} was taken meanwhile."
            raise DomainError("CONFLICT", message, name=self.name)
        if taken.batch is not None:
            self.append(taken.batch, now)
        self.source_origin, self.source_position = taken.origin, taken.last
        self.rejected_count += taken.rejected
        self.last_rejection = taken.rejection or self.last_rejection
        self.update_time = now

    def roll(self, task: str, now: datetime) -> None:
        """What waited becomes a version, by a task."""
        self.pending_rows, self.pending_bytes, self.roll_time = 0, 0, None
        self.roll_count += 1
        self.task, self.update_time = task, now

    def postpone(self, now: datetime) -> None:
        """What waits cannot become a version now."""
        self.roll_time = now + _PATIENCE

    def hasten(self, now: datetime) -> None:
        """What waits is to become a version now."""
        if self.pending_rows:
            self.roll_time = min(now, self.roll_time or now)

    def require_room(self, size: int) -> None:
        """Raises STATE_CONFLICT unless so many bytes may wait beside those that do."""
        if self.pending_bytes + size > MOST_PENDING_BYTES:
            message = f"{self.name}: {self.pending_bytes:,} bytes wait to become a version; send more when they have."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="full", wanted="room")

    def require_sent(self) -> None:
        """Raises STATE_CONFLICT if the rows come from a source: nobody sends others."""
        if self.source_subject:
            message = f"{self.name}: its rows come from {self.source_subject}; make another stream to send some."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state="sourced", wanted="sent")

    def require_origin(self, origin: str) -> None:
        """Raises STATE_CONFLICT if messages come from elsewhere than those before: nobody can tell which are new."""
        if self.source_origin not in ("", origin):
            message = f"{self.name} has read {self.source_origin}, and now there is {origin}: make another stream."
            raise DomainError("STATE_CONFLICT", message, name=self.name, state=self.source_origin, wanted=origin)

    def require_pending(self, wanted: bool) -> None:
        """Raises STATE_CONFLICT unless rows wait, or none does."""
        if bool(self.pending_rows) == wanted:
            return
        message = f"{self.name}: " + ("no row waits." if wanted else f"{self.pending_rows:,} rows wait: roll it first.")
        states = ("pending", "empty") if wanted else ("empty", "pending")
        raise DomainError("STATE_CONFLICT", message, name=self.name, state=states[1], wanted=states[0])
