"""A task as Python sees it, and as messages."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from argosy.common.v1 import task_pb2
from google.protobuf import json_format
from sqlalchemy import RowMapping

from libs.common.db.mapping import timestamp

Json = dict[str, Any]

# Messages are for people; an engine that prints a whole document must not fill the database.
_MESSAGE_LIMIT = 2_000


@dataclass(frozen=True)
class TaskError:
    """Why a task failed: a reason of the catalogue, a sentence, its dynamic parts, and whether a retry may help."""

    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    retryable: bool = False

    def to_row(self) -> Json:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """One row of tasks; see argosy.common.v1.Task for the meaning of the fields.

    Attributes:
        input: What `Tasks.create` was given.
        checkpoint: The newest checkpoint of any attempt.
        carrier: Name of the Ray actor of this attempt; empty before the first.
        reservation: Id of its room in identity's ledger; None: it has none to give back.
    """

    uid: str
    org: str
    name: str
    kind: str
    target: str
    creator: str
    labels: dict[str, str]
    traceparent: str
    input: Json
    state: str
    version: int
    create_time: datetime
    update_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    progress: float
    message: str
    eta: datetime | None
    cost: dict[str, float]
    attempt: int
    max_attempts: int
    cancel_requested: bool
    pause_requested: bool
    error: Json | None
    result: Json | None
    checkpoint: Json | None
    reservation: str | None
    carrier: str
    carrier_cursor: int
    sequence: int

    @classmethod
    def from_row(cls, row: RowMapping) -> Task:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def to_proto(self) -> task_pb2.Task:
        """The task as callers see it."""
        message = task_pb2.Task(
            name=self.name,
            uid=self.uid,
            etag=hashlib.sha256(f"{self.uid}/{self.version}".encode()).hexdigest()[:16],
            creator=self.creator,
            state=f"STATE_{self.state}",
            kind=self.kind,
            target=self.target,
            progress=self.progress,
            message=self.message,
            attempt=self.attempt,
            max_attempts=self.max_attempts,
            cost=self.cost,
            cancel_requested=self.cancel_requested,
            pause_requested=self.pause_requested,
            traceparent=self.traceparent,
            labels=self.labels,
        )
        for name in ("create_time", "update_time", "start_time", "end_time", "eta"):
            moment = getattr(self, name)
            if moment is not None:
                getattr(message, name).CopyFrom(timestamp(moment))
        if self.error is not None:
            message.error.CopyFrom(task_pb2.TaskError(**self.error))
        if self.result is not None:
            json_format.ParseDict(self.result, message.result)
        return message


ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


def log_payload(event: Mapping[str, Any]) -> Json:
    """The stored form of a carrier's log line."""
    return {"severity": event["severity"], "body": storable(event["body"])}


def metrics_payload(event: Mapping[str, Any]) -> Json:
    """The stored form of a carrier's metrics. PostgreSQL's JSON has no NaN and no infinity: they are stored as text."""
    values = {name: value if math.isfinite(value) else str(value) for name, value in event["values"].items()}
    return {"phase": event["phase"], "step": event["step"], "values": values}


def storable(text: str) -> str:
    """Text for people as PostgreSQL takes it: short, and without half characters and U+0000."""
    return text[:_MESSAGE_LIMIT].encode(errors="replace").decode().replace("\x00", "\ufffd")


def log_to_proto(row: RowMapping) -> task_pb2.TaskLog:
    """A log line of task_events."""
    payload = row["payload"]
    return task_pb2.TaskLog(
        severity=payload["severity"],
        body=payload["body"],
        time=timestamp(row["time"]),
        sequence=row["sequence"],
        attempt=row["attempt"],
    )


def metrics_to_proto(row: RowMapping) -> task_pb2.TaskMetrics:
    """Metrics of task_events."""
    payload = row["payload"]
    return task_pb2.TaskMetrics(
        step=payload["step"],
        phase=payload["phase"],
        values={name: float(value) for name, value in payload["values"].items()},
        time=timestamp(row["time"]),
        sequence=row["sequence"],
    )


def event_to_proto(row: RowMapping) -> task_pb2.TaskEvent:
    """A row of task_events as a watcher sees it."""
    event = task_pb2.TaskEvent(sequence=row["sequence"], time=timestamp(row["time"]))
    if row["kind"] == "log":
        event.log.CopyFrom(log_to_proto(row))
    else:
        event.metrics.CopyFrom(metrics_to_proto(row))
    return event
